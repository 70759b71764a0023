"""Data collection: teacher, student or a mixture acts, and the teacher labels."""
