#!/bin/sh
# Tests need the doctest header. Installs the system's package, or says in one line what to install.
set -u
if command -v apt-get >/dev/null 2>&1; then
    sudo=""
    [ "$(id -u)" = 0 ] || sudo="sudo"
    echo "doctest is missing: installing the system's package (apt-get install doctest-dev)"
    if $sudo apt-get install -y -qq doctest-dev >/dev/null 2>&1 ||
       { $sudo apt-get update -qq >/dev/null 2>&1 && $sudo apt-get install -y -qq doctest-dev >/dev/null; }
    then exit 0; fi
fi
echo "error: the tests need doctest: install doctest-dev (Debian), doctest-devel (Fedora) or doctest" \
     "(Arch, Homebrew), or give DOCTEST_DIR=folder that holds doctest/doctest.h" >&2
exit 1
