"""Fits of students to the labels of a teacher."""
