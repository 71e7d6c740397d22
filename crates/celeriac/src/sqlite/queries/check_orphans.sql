-- Rows of tasks that are not known, and live tasks without a message. Returns one line of text for each.
SELECT 'table ' || source || ' has a row of the unknown task number ' || seq
FROM (SELECT 'ready' AS source, seq FROM ready UNION ALL SELECT 'delayed', seq FROM delayed
      UNION ALL SELECT 'lease', seq FROM lease UNION ALL SELECT 'dead', seq FROM dead
      UNION ALL SELECT 'result', seq FROM result UNION ALL SELECT DISTINCT 'log', seq FROM log
      UNION ALL SELECT DISTINCT 'step', seq FROM step UNION ALL SELECT DISTINCT 'attempt', seq FROM attempt
      UNION ALL SELECT DISTINCT 'tag', seq FROM tag)
WHERE seq NOT IN (SELECT seq FROM task)
UNION ALL
SELECT 'task ' || id || ' lives without a message' FROM task
WHERE head IS NULL AND seq IN (SELECT seq FROM ready UNION ALL SELECT seq FROM delayed UNION ALL SELECT seq FROM lease
                               UNION ALL SELECT seq FROM dead)
