//! Loading files: trust, levels, kinds of paths, damage, and what happens while a file is loaded.

mod support;

use fqbin::{Image, SecretKey, write_file};
use fqrt::{Error, Level, Load, Model, Options, Session, SessionOptions, TensorView, Trust};
use support::{sums_image, sums_of};

fn check(model: &std::sync::Arc<Model>) {
    let mut session = Session::new(model, SessionOptions::threads(1)).unwrap();
    let x = [1i32, 5, 9];
    let outputs = session.run(&[("x", TensorView::of(&[3], &x))]).unwrap();
    assert_eq!(outputs.get("y").unwrap().numbers::<i32>().unwrap(), sums_of(&x));
}

fn anyone() -> Options {
    Options::new(Trust::Anyone)
}

#[test]
fn a_file_loads_and_runs_mapped_or_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.fqbin");
    let written = write_file(&path, &sums_image(&[Level::Avx2]), None).unwrap();
    for load in [Load::Map, Load::Read] {
        let model = Model::load(&path, &Options { load, ..anyone() }).unwrap();
        assert_eq!((model.level(), model.manifest()), (Some(Level::Avx2), &b"{}"[..]));
        assert_eq!(model.content_id(), Some(written.content_id));
        check(&model);
        // Replaced by a rename, and gone: a loaded model is unaffected.
        write_file(&path, &sums_image(&[Level::Avx2, Level::AmxInt8]), None).unwrap();
        check(&model);
        std::fs::remove_file(&path).unwrap();
        check(&model);
        write_file(&path, &sums_image(&[Level::Avx2]), None).unwrap();
    }
}

#[test]
fn code_runs_only_for_a_trusted_key() {
    let dir = tempfile::tempdir().unwrap();
    let (own, other) = (SecretKey::from_bytes(&[1; 32]), SecretKey::from_bytes(&[2; 32]));
    let image = sums_image(&[Level::Avx2]);
    let path = dir.path().join("m.fqbin");
    let keys = Options::new(Trust::Keys(vec![own.public()]));
    write_file(&path, &image, Some(&own)).unwrap();
    check(&Model::load(&path, &keys).unwrap());
    for key in [None, Some(&other)] {
        write_file(&path, &image, key).unwrap();
        let error = Model::load(&path, &keys).unwrap_err();
        assert!(matches!(error, Error::File { source: fqbin::Error::Untrusted(_), .. }), "{error}");
        check(&Model::load(&path, &anyone()).unwrap());
    }
}

#[test]
fn what_is_no_file_is_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let missing = Model::load(&dir.path().join("none"), &anyone()).unwrap_err();
    assert!(matches!(missing, Error::Io { .. }), "{missing}");
    for path in [dir.path(), "/dev/zero".as_ref()] {
        let error = Model::load(path, &anyone()).unwrap_err().to_string();
        assert!(error.contains("not a regular file"), "{error}");
    }
    let empty = dir.path().join("empty");
    std::fs::write(&empty, b"").unwrap();
    let error = Model::load(&empty, &anyone()).unwrap_err().to_string();
    assert!(error.contains("it is empty") && error.contains("empty`"), "{error}");
}

#[test]
fn a_file_without_this_target_or_level_cannot_run() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.fqbin");
    let mut image: Image = sums_image(&[Level::Avx2]);
    let forced = anyone().level(Some(Level::AmxInt8));
    write_file(&path, &image, None).unwrap();
    let error = Model::load(&path, &forced).unwrap_err().to_string();
    assert!(error.contains("no code for CPU level `amx-int8`, only for `avx2`"), "{error}");
    image.targets[0].target = "cuda:sm_90a".into();
    write_file(&path, &image, None).unwrap();
    let error = Model::load(&path, &anyone()).unwrap_err();
    assert!(matches!(error, Error::CannotRun(_)), "{error}");
    assert!(error.to_string().contains("cuda:sm_90a"), "{error}");
}

#[test]
fn damaged_files_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.fqbin");
    write_file(&path, &sums_image(&[Level::Avx2]), None).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let bad = dir.path().join("bad.fqbin");
    for at in (0..bytes.len()).step_by(97) {
        std::fs::write(&bad, &bytes[..at]).unwrap();
        assert!(Model::load(&bad, &anyone()).is_err(), "cut at {at}");
        let mut flipped = bytes.clone();
        flipped[at] ^= 0x10;
        std::fs::write(&bad, &flipped).unwrap();
        let error = Model::load(&bad, &anyone()).unwrap_err().to_string();
        assert!(error.contains("bad.fqbin"), "{error}");
    }
}

#[test]
fn loading_again_and_again_keeps_nothing_open() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.fqbin");
    write_file(&path, &sums_image(&[Level::Avx2]), None).unwrap();
    let place = dir.path().to_string_lossy().into_owned();
    let maps = || std::fs::read_to_string("/proc/self/maps").unwrap().matches(&place).count();
    for _ in 0..1000 {
        Model::load(&path, &anyone()).unwrap();
    }
    assert_eq!(maps(), 0);
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| check(&Model::load(&path, &anyone()).unwrap()));
        }
    });
}
