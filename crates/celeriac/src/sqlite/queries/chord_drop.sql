-- Forgets a chord. ?1 chord.
DELETE FROM chord WHERE chord = ?1
