"""Tables and records for people and programs. No torch."""
