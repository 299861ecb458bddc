//! Turns the fail points on, for this package alone.

fn main() {
    println!("cargo:rustc-cfg=failpoints");
    println!("cargo:rerun-if-changed=build.rs");
}
