UPDATE sessions SET seconds = 9e999, measured_at = 'never' WHERE id = 1;
UPDATE outcomes SET record = CAST(record AS BLOB), session = 1 << 62 WHERE id = 2;
DELETE FROM environments WHERE fingerprint IN (SELECT environment FROM breakdowns);