//! How bytes travel between sites.
