# SPDX-License-Identifier: GPL-2.0
#
# What sphinx needs to know; tools/docs runs it.

project = 'Rust Live Update Orchestrator'
author = 'the Rust Live Update Orchestrator maintainers'

html_theme = 'alabaster'
html_theme_options = {'description': 'Open files that survive a kexec', 'page_width': '1040px'}
html_sidebars = {'**': ['about.html', 'navigation.html', 'searchbox.html']}
html_show_copyright = False
html_copy_source = False
html_show_sourcelink = False

# Options and arrows are to stay as they were typed.
smartquotes = False
highlight_language = 'none'
pygments_style = 'default'
