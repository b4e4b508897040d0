"""Results as text, JSON, Markdown, JUnit XML and pictures. Nothing is measured here."""
