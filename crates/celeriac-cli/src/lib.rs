//! The celeriac command line as a library.
