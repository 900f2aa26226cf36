"""The what-if dashboard: a Streamlit application over `simulator`, started by ``sim dashboard``.

A page asks for a `View` (everything a reader has chosen), lets `simulator` answer it and draws the answer. A view is
also a link, a command line and a deployment file, so whatever is on the screen can be sent, repeated and kept.
"""
