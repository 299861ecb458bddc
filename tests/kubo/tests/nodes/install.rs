//! scripts/plugin-install.sh installs only a plugin that the given ipfs can load. (Every test with
//! an external plugin covers a successful install.)

use std::path::Path;

use kubo_tests::{from_script, noise, Index, Ipfs, Node, World};

#[test]
fn install_refuses_what_would_not_load() {
    let (old, new) = (Ipfs::external_30(), Ipfs::external_43());
    let preloaded = Ipfs::preloaded();
    let plugin_43 = from_script("WALRUSDS_TEST_PLUGIN_43");
    let plugin_30 = from_script("WALRUSDS_TEST_PLUGIN_30");
    let shell = Ipfs {
        program: "/bin/sh".into(),
        plugin: None,
    };
    let tool = Ipfs {
        program: from_script("WALRUSDS_TEST_CONFIGURE"),
        plugin: None,
    };
    let bare = |ipfs: &Ipfs| {
        Node::without_repo(&Ipfs {
            plugin: None,
            ..ipfs.clone()
        })
    };
    for (ipfs, plugin, reason) in [
        (&old, plugin_43.as_path(), "go1.22"),
        (&new, plugin_30.as_path(), "go1.22"),
        (&preloaded, plugin_43.as_path(), "built in already"),
        (&shell, plugin_43.as_path(), "not a Go program"),
        (&tool, plugin_43.as_path(), "ipfs"),
        (&new, Path::new("/nonexistent.so"), "no such plugin"),
    ] {
        let node = bare(ipfs);
        let what = format!("{} with {}", ipfs.program.display(), plugin.display());
        let said = node.install(plugin).expect_refusal(&what);
        assert!(said.contains(reason), "{what}: {said}");
        assert!(
            !node.repo().exists(),
            "{what}: something was installed: {said}"
        );
    }
}

#[test]
fn install_finds_out_what_an_ipfs_needs() {
    // Without --so the plugin is built for the program; here it is built already.
    let ipfs = Ipfs::external_43();
    let node = Node::without_repo(&Ipfs {
        plugin: None,
        ..ipfs.clone()
    });
    let said = node
        .install_with([""; 0])
        .expect_ok("plugin-install.sh")
        .said();
    assert!(
        said.contains("installed") && said.contains("up to date"),
        "{said}"
    );
    let installed = std::fs::read(node.repo().join("plugins/walrusds.so")).unwrap();
    assert!(installed == std::fs::read(ipfs.plugin.unwrap()).unwrap());
    assert!(node.ok(["version"]).contains("0.43.0"));

    // An install of another version's plugin over a good one fails; the good one stays.
    node.install(&from_script("WALRUSDS_TEST_PLUGIN_30"))
        .expect_refusal("the wrong plugin");
    assert!(installed == std::fs::read(node.repo().join("plugins/walrusds.so")).unwrap());
    assert!(node.ok(["version"]).contains("0.43.0"));
}

#[test]
fn install_with_the_engine_as_a_library_of_its_own() {
    let world = World::new(Index::Sqlite);
    let node = Node::without_repo(&Ipfs {
        plugin: None,
        ..Ipfs::external_43()
    });
    let plugin = from_script("WALRUSDS_TEST_PLUGIN_43_DYNAMIC");
    node.install_with(["--dynamic".as_ref(), "--so".as_ref(), plugin.as_os_str()])
        .expect_ok("plugin-install.sh --dynamic");
    node.init(&world.settings).expect_ok("init");
    let file = noise(1, 3 << 20);
    let cid = node.add(&file);
    node.assert_holds(&cid, &file);
    node.verify();

    std::fs::remove_file(node.repo().join("lib/libwalrusds.so")).unwrap();
    let said = node.fails(["version"]);
    assert!(said.contains("libwalrusds.so"), "{said}");
}
