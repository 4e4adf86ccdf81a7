"""The one-page model, its parameters and endpoints, and its binding to a population."""
