"""Results for people: tables, sentences, figures, pages, and what is shown meanwhile."""
