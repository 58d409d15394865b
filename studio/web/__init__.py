"""What all pages share: rendering, languages, links, events; the pages themselves are in web/pages."""
