"""Results as text, JSON, Markdown and JUnit XML. No arithmetic: what stands here was measured below."""
