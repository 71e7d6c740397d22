-- Counts an answer, for those who look for news.
UPDATE counter SET reply = reply + 1 WHERE one = 1
