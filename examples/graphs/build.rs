//! Leaves the debug information out of the function library: it travels to the executor with every
//! deployment, and debug information is nine tenths of it.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-link-arg-cdylib=-Wl,--strip-debug");
}
