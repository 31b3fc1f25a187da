ALTER TABLE sessions DROP COLUMN place;
ALTER TABLE sessions ADD COLUMN place TEXT AS (hex(zeroblob(9)));
PRAGMA user_version = 3;