-- Marks a held message as revoked; a mark is never taken back. ?1 seq, ?2 the mark.
UPDATE lease SET revoked = max(revoked, ?2) WHERE seq = ?1
