"""The page: layout, handlers and a visitor's state. Only this folder and `app.py` know Gradio."""
