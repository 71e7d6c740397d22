-- Tasks that neither live nor have a result: their message was lost. Returns one line of text for each.
SELECT 'task ' || t.id || ' has neither a message in any place nor a result' FROM task t
WHERE t.seq NOT IN (SELECT seq FROM result) AND t.seq NOT IN (SELECT seq FROM lease)
    AND t.seq NOT IN (SELECT seq FROM delayed) AND t.seq NOT IN (SELECT seq FROM dead)
    AND t.seq NOT IN (SELECT seq FROM ready)
