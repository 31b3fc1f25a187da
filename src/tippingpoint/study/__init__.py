"""Studies: which lengths to measure next, and the coordinator that measures, stores and resumes."""
