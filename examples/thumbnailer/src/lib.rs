//! thumbnailer
