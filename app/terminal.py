"""A command line as it is typed, with a button that copies it.

Streamlit's own block of code loads a highlighter of 1.6 MB that the first screen would wait for.
"""

from __future__ import annotations

from html import escape

import streamlit as st

__all__ = ["draw"]

COPY = """
document.currentScript.previousElementSibling.onclick = async ({target: button}) => {
    const text = button.previousElementSibling;
    getSelection().selectAllChildren(text);
    try { await navigator.clipboard.writeText(text.innerText); } catch { document.execCommand("copy"); }
    button.innerText = "Copied";
    setTimeout(() => button.innerText = "Copy", 1500);
};
"""
"""Of the button before it; without HTTPS a browser has no clipboard to write to, but still copies a selection."""


def draw(command: str) -> None:
    """Show *command*, which may have several lines."""
    words = "\n".join(" ".join(map(_whole, line.split(" "))) for line in command.split("\n"))
    lines = f'<pre tabindex="0" aria-label="command line">{words}</pre>'
    button = '<button type="button" aria-label="Copy the command line">Copy</button>'
    st.html(
        f'<div class="command">{lines}{button}<script>{COPY}</script></div>', unsafe_allow_javascript=True
    )


def _whole(word: str) -> str:
    """A line may end between words, not behind a hyphen."""
    return f"<span>{escape(word)}</span>"
