"""One local web page: a user's slates of champion and challenger side by side."""
