-- Chords whose counts are wrong, and parts without a chord. Returns one line of text for each.
SELECT 'chord ' || group_id || ' counts ' || ended || ' of ' || size || ' ends and has ' || parts || ' parts'
FROM (SELECT c.*, (SELECT count(*) FROM chord_part p WHERE p.chord = c.chord) AS parts FROM chord c)
WHERE ended <> parts OR (ready IS NOT NULL) <> (ended >= size)
UNION ALL
SELECT 'a part of the unknown chord number ' || chord FROM chord_part WHERE chord NOT IN (SELECT chord FROM chord)
