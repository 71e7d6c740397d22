-- Tags a task. ?1 seq, ?2 place among its tags, ?3 tag.
INSERT INTO tag (seq, place, tag) VALUES (?1, ?2, ?3)
