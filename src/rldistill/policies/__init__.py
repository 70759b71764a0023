"""Networks and wrappers that teachers and students share."""
