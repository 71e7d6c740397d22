-- Sends a command. ?1 number, ?2 expires, ?3 ticket, ?4 method, ?5 arguments, ?6 destination.
INSERT INTO command (number, expires, ticket, method, arguments, destination) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
