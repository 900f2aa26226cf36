"""One module per page; each has one function, which Streamlit runs from top to bottom at every change."""
