//! Generates `include/walrusds.h` from `src/ffi`. The header is committed; `make check` fails when
//! it is not what this writes.

use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-changed=src/ffi");
    println!("cargo:rerun-if-changed=cbindgen.toml");
    println!("cargo:rerun-if-changed=include/walrusds.h");
    let root = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let config =
        cbindgen::Config::from_file(root.join("cbindgen.toml")).expect("cbindgen.toml is valid");
    let sources = ["mod", "buf", "entry", "page", "runtime"];
    let mut builder = cbindgen::Builder::new().with_config(config);
    for source in sources {
        builder = builder.with_src(root.join(format!("src/ffi/{source}.rs")));
    }
    let bindings = builder.generate().expect("src/ffi parses");
    // Written only when it differs. A read-only source tree (a crate from a registry) keeps its
    // committed header.
    let mut header = Vec::new();
    bindings.write(&mut header);
    let path = root.join("include/walrusds.h");
    if std::fs::read(&path).is_ok_and(|old| old == header) {
        return;
    }
    let _ = std::fs::create_dir_all(root.join("include"));
    if let Err(e) = std::fs::write(&path, header) {
        println!("cargo:warning=include/walrusds.h could not be updated: {e}");
    }
}
