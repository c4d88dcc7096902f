"""Records -> Markdown, HTML and plots; pure."""
