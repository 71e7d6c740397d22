//! Examples of celeriac; each is a file beside this one.
