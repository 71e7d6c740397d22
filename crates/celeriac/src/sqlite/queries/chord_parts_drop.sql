-- Forgets the ends counted for a chord. ?1 chord.
DELETE FROM chord_part WHERE chord = ?1
