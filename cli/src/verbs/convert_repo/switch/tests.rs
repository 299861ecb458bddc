//! The switch ends after each of its steps, and another run goes on.

use std::path::PathBuf;

use serde_json::json;

use super::super::state::{To, FILE};
use super::*;

struct Repo {
    dir: tempfile::TempDir,
}

/// What Kubo would do with a repo.
#[derive(Debug, PartialEq, Eq)]
enum Opens {
    Flatfs,
    Walrusds,
    Refuses,
}

impl Repo {
    fn new() -> Repo {
        let repo = Repo {
            dir: tempfile::tempdir().unwrap(),
        };
        let root = json!({"mountpoint": "/", "type": "measure", "prefix": "l", "child": {"type": "levelds", "path": "datastore"}});
        let spec = json!({"type": "mount", "mounts": [spec::flatfs_entry(), root]});
        let config =
            json!({"Identity": {"PeerID": "p"}, "Datastore": {"Spec": spec, "StorageMax": "10GB"}});
        std::fs::write(repo.path("config"), config.to_string()).unwrap();
        let short = json!({"type": "mount", "mounts": [
            spec::short_form(&spec::flatfs_entry()).unwrap(),
            {"mountpoint": "/", "path": "datastore", "type": "levelds"},
        ]});
        std::fs::write(repo.path("datastore_spec"), spec::as_go(&short)).unwrap();
        repo
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    /// Compares the two files as Kubo does: the short form of all mounts, byte by byte.
    fn opens(&self) -> Opens {
        let config = read(&self.path("config")).unwrap();
        let entry = spec::of_config(&config).unwrap();
        let expected = json!({"type": "mount", "mounts": [
            spec::short_form(entry).unwrap(),
            {"mountpoint": "/", "path": "datastore", "type": "levelds"},
        ]});
        assert_eq!(config["Identity"]["PeerID"], "p");
        assert_eq!(config["Datastore"]["Spec"]["mounts"][1]["prefix"], "l");
        if self.text("datastore_spec") != spec::as_go(&expected) {
            return Opens::Refuses;
        }
        match spec::kind(entry) {
            "flatfs" => Opens::Flatfs,
            _ => Opens::Walrusds,
        }
    }

    /// One run of the command: it goes on with what the repo's own files say.
    fn run(&self, to: To, end_after: Option<Step>) -> Result<(), Failure> {
        let held = RepoLock::take(self.dir.path(), "").unwrap();
        let mut state = State::load(self.dir.path())?.filter(|state| state.to == to);
        if matches!(&state, Some(state) if state.phase == Phase::Switched) {
            return Ok(());
        }
        let state = state.get_or_insert_with(|| {
            let settings =
                json!({"publisherURL": "http://p", "aggregatorURL": "http://a", "indexPath": "i"});
            let (flatfs, walrusds) = (
                spec::flatfs_entry(),
                spec::walrusds_entry(settings.as_object().unwrap()),
            );
            match to {
                To::Walrusds => State::new(to, flatfs, walrusds),
                To::Flatfs => State::new(to, walrusds, flatfs),
            }
        });
        state.save(self.dir.path())?;
        switch(
            self.dir.path(),
            state,
            &held,
            &mut |step| match end_after == Some(step) {
                true => Err(Failure::Failed("ended".to_owned())),
                false => Ok(()),
            },
        )
    }
}

const STEPS: [(Step, bool); 5] = [
    (Step::Noted, false),
    (Step::Kept, false),
    (Step::SpecReplaced, false),
    (Step::ConfigReplaced, true),
    (Step::Ended, true),
];

#[test]
fn a_switch_that_ended_anywhere_is_carried_on_in_both_directions() {
    for (to, old, new) in [
        (To::Walrusds, Opens::Flatfs, Opens::Walrusds),
        (To::Flatfs, Opens::Walrusds, Opens::Flatfs),
    ] {
        for (step, switched) in STEPS {
            let repo = Repo::new();
            if to == To::Flatfs {
                repo.run(To::Walrusds, None).unwrap();
            }
            assert_eq!(repo.opens(), old);
            let (config, disk) = (repo.text("config"), repo.text("datastore_spec"));
            repo.run(to, Some(step)).unwrap_err();
            match (step, switched) {
                (Step::SpecReplaced, _) => assert_eq!(repo.opens(), Opens::Refuses),
                (_, true) => assert_eq!(repo.opens(), new, "{step:?}"),
                (_, false) => assert_eq!(repo.opens(), old, "{step:?}"),
            }
            // And once more at the same place, if it is reached again.
            let _ = repo.run(to, Some(step));
            repo.run(to, None).unwrap();
            assert_eq!(repo.opens(), new, "{step:?}");
            let state = State::load(repo.dir.path()).unwrap().unwrap();
            assert_eq!((state.phase, state.to), (Phase::Switched, to));
            assert!(
                !repo.text(FILE).contains("http://p"),
                "settings are forgotten"
            );
            let kept = |name: &str| std::fs::read_to_string(kept(repo.dir.path(), name, to));
            assert_eq!(kept("config").unwrap(), config, "{step:?}");
            assert_eq!(kept("datastore_spec").unwrap(), disk, "{step:?}");
        }
    }
}

#[test]
fn there_and_back_gives_the_same_files() {
    let repo = Repo::new();
    let disk = repo.text("datastore_spec");
    let config = read(&repo.path("config")).unwrap();
    repo.run(To::Walrusds, None).unwrap();
    repo.run(To::Flatfs, None).unwrap();
    assert_eq!(repo.text("datastore_spec"), disk);
    assert_eq!(read(&repo.path("config")).unwrap(), config);
}

#[test]
fn a_conversion_is_cancelled_until_the_config_is_replaced() {
    for (step, switched) in STEPS {
        let repo = Repo::new();
        let (config, disk) = (repo.text("config"), repo.text("datastore_spec"));
        repo.run(To::Walrusds, Some(step)).unwrap_err();
        let held = RepoLock::take(repo.dir.path(), "").unwrap();
        let state = State::load(repo.dir.path()).unwrap().unwrap();
        if state.phase == Phase::Switched {
            continue;
        }
        let cancelled = cancel(repo.dir.path(), &state, &held);
        if switched {
            let error = cancelled.unwrap_err().to_string();
            assert!(error.contains("--to flatfs"), "{error}");
            assert_eq!(repo.opens(), Opens::Walrusds);
            continue;
        }
        cancelled.unwrap();
        assert_eq!(repo.opens(), Opens::Flatfs, "{step:?}");
        assert_eq!(
            (repo.text("config"), repo.text("datastore_spec")),
            (config, disk)
        );
        assert!(!repo.path(FILE).exists());
    }
}

#[test]
fn what_another_program_has_changed_stays_or_is_an_error() {
    let repo = Repo::new();
    repo.run(To::Walrusds, Some(Step::SpecReplaced))
        .unwrap_err();
    let mut config = read(&repo.path("config")).unwrap();
    config["Datastore"]["StorageMax"] = "1TB".into();
    std::fs::write(repo.path("config"), config.to_string()).unwrap();
    repo.run(To::Walrusds, None).unwrap();
    assert_eq!(
        read(&repo.path("config")).unwrap()["Datastore"]["StorageMax"],
        "1TB"
    );

    let repo = Repo::new();
    repo.run(To::Walrusds, Some(Step::Noted)).unwrap_err();
    std::fs::write(
        repo.path("datastore_spec"),
        repo.text("datastore_spec")
            .replace("\"blocks\"", "\"other\""),
    )
    .unwrap();
    let error = repo.run(To::Walrusds, None).unwrap_err().to_string();
    assert!(error.contains("fit neither the flatfs"), "{error}");
    assert!(error.contains("config.before-walrusds"), "{error}");
}

#[test]
fn a_state_of_another_version_is_refused() {
    let repo = Repo::new();
    std::fs::write(repo.path(FILE), r#"{"version": 2}"#).unwrap();
    let error = State::load(repo.dir.path()).unwrap_err().to_string();
    assert!(error.contains("version 2"), "{error}");
}

#[test]
fn a_disk_that_takes_nothing_more_leaves_the_repo_as_it_was() {
    // The copy of the config cannot be written, as a directory is in its place.
    let repo = Repo::new();
    std::fs::create_dir(kept(repo.dir.path(), "config", To::Walrusds)).unwrap();
    let error = repo.run(To::Walrusds, None).unwrap_err().to_string();
    assert!(error.contains("config.before-walrusds"), "{error}");
    assert_eq!(repo.opens(), Opens::Flatfs);
}
