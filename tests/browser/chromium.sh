#!/bin/sh
# Make sure that a Chromium is there for the browser tests: install Debian's where we may, else say how.
set -eu
for name in chromium chromium-browser google-chrome; do
    if command -v "$name" >/dev/null 2>&1; then exit 0; fi
done
install="apt-get update && apt-get install --yes --no-install-recommends chromium"
if command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
    sh -c "$install" >/dev/null || echo "browser tests: could not install Chromium; run: $install" >&2
else
    echo "browser tests need a Chromium; run: sudo sh -c '$install'" >&2
fi
