//! Puts the locks and atomics of a scheduler under the engine, for this package alone.

fn main() {
    println!("cargo:rustc-cfg=shuttle");
    println!("cargo:rerun-if-changed=build.rs");
}
