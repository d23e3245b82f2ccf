//! The file as a whole: bytes are deterministic and read back; whatever is cut, flipped, from
//! another version or unsigned is refused with its reason; a failed write leaves nothing behind.

mod support;

use fqbin::{Error, File, Image, Kind, SecretKey, Trust, to_bytes, write_file};
use support::{open_any, repair, sample_image};

fn sample() -> Vec<u8> {
    to_bytes(&sample_image(), None).unwrap()
}

fn error(bytes: &[u8]) -> Error {
    match File::open(bytes) {
        Ok(_) => panic!("a bad file was opened"),
        Err(e) => e,
    }
}

#[test]
fn an_image_reads_back() {
    let image = sample_image();
    let bytes = sample();
    assert_eq!(bytes, sample(), "two writings differ");
    assert!(open_any(&bytes));
    let file = File::open(&bytes).unwrap();
    assert_eq!(file.manifest().unwrap(), image.manifest);
    assert_eq!(file.layout().table.producer, "fqc 0.0.0");
    for made in &image.targets {
        let target = file.layout().target(&made.target).unwrap();
        assert_eq!(target.program, made.program);
        assert_eq!(file.weights(target).unwrap(), made.weights.to_vec());
        let code = file.code(target).unwrap();
        assert_eq!(code.len(), made.code.len());
        for view in code {
            let made = made.code.iter().find(|c| c.level == view.level).unwrap();
            assert_eq!((&view.entries[..], view.bytes), (&made.entries[..], &made.bytes[..]));
        }
    }
    for section in &file.layout().table.sections {
        let wanted = if matches!(section.kind, Kind::Weights | Kind::Code) { 4096 } else { 64 };
        assert_eq!(section.offset % wanted, 0, "{}", section.label());
    }
}

#[test]
fn the_order_of_targets_and_levels_does_not_matter() {
    let mut image = sample_image();
    image.targets.reverse();
    image.targets.iter_mut().for_each(|t| t.code.reverse());
    assert_eq!(to_bytes(&image, None).unwrap(), sample());
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let bytes = sample();
    for len in 0..bytes.len() {
        match error(&bytes[..len]) {
            Error::NotFqbin(what) => assert_eq!((len, &what[..]), (0, "it is empty")),
            Error::Truncated { have, want, .. } => {
                assert_eq!(have, len as u64);
                assert!(want > have);
            }
            other => panic!("cut at {len}: {other}"),
        }
    }
    let cut = error(&bytes[..bytes.len() - 1]).to_string();
    assert!(cut.contains("section `plan cuda:sm_90a`") || cut.contains("section `code"), "{cut}");
    assert!(matches!(error(&[&bytes[..], &[0]].concat()), Error::Malformed(_)));
}

#[test]
fn every_flipped_bit_is_refused() {
    let mut bytes = sample();
    let file = File::open(&bytes).unwrap();
    // Header and table; then the first bytes of every section, and all bytes of the plans.
    let head = 256 + 128 * file.layout().table.sections.len();
    let mut places: Vec<usize> = (0..head).collect();
    for section in &file.layout().table.sections {
        let len = if section.kind == Kind::Plan { section.len } else { section.len.min(64) };
        places.extend((section.offset..section.offset + len).map(|i| i as usize));
    }
    // Padding is as protected as the rest.
    places.extend(head..file.layout().table.sections[0].offset as usize);
    for place in places {
        for bit in 0..8 {
            bytes[place] ^= 1 << bit;
            assert!(File::open(&bytes).is_err(), "bit {bit} of byte {place}");
            bytes[place] ^= 1 << bit;
        }
    }
    assert!(open_any(&bytes));
}

#[test]
fn versions_and_features_have_their_messages() {
    let edit = |at: usize, value: u32| {
        let mut bytes = sample();
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        repair(&mut bytes);
        bytes
    };
    let newer = |bytes: &mut Vec<u8>| bytes[8..12].copy_from_slice(&9u32.to_le_bytes());
    let mut bytes = edit(12, 9);
    newer(&mut bytes);
    let message = error(&bytes).to_string();
    assert_eq!(
        message,
        "the file has format 9 and needs a reader of format 9; this one reads up to 2, update fqc"
    );
    let mut bytes = edit(12, 0);
    bytes[8..12].fill(0);
    assert!(error(&bytes).to_string().contains("compile the model again"));
    // A later format that this reader still understands opens.
    let mut bytes = sample();
    newer(&mut bytes);
    repair(&mut bytes);
    assert!(open_any(&bytes));
    assert!(error(&edit(32, 4)).to_string().contains("features 0x4"));
    assert!(open_any(&edit(40, 4)), "an unknown optional feature was refused");
    let unknown_kind = error(&edit(256, 77)).to_string();
    assert!(unknown_kind.contains("unknown kind 77"), "{unknown_kind}");
}

#[test]
fn other_files_are_named() {
    for (bytes, what) in [
        (&b"\x08\x07\x12\x04onnx"[..], "ONNX"),
        (b"\x7fELF....", "ELF"),
        (b"GGUF....", "GGUF"),
        (b"\x10\0\0\0\0\0\0\0{\"a\":1}", "safetensors"),
        (b"FQBIN\n\x1a123", "binary mode"),
        (b"hello world", "magic"),
    ] {
        let message = error(bytes).to_string();
        assert!(message.contains(what), "{message}");
    }
}

#[test]
fn tables_that_lie_are_refused() {
    let lie = |record: usize, field: usize, value: &[u8]| {
        let mut bytes = sample();
        let at = 256 + 128 * record + field;
        bytes[at..at + value.len()].copy_from_slice(value);
        repair(&mut bytes);
        error(&bytes)
    };
    let big = u64::MAX.to_le_bytes();
    for record in 0..3 {
        assert!(matches!(lie(record, 8, &big), Error::Malformed(_)), "offset");
        assert!(matches!(lie(record, 16, &big), Error::Limit(_)), "length");
        assert!(matches!(lie(record, 24, &3u32.to_le_bytes()), Error::Malformed(_)), "alignment");
        assert!(matches!(lie(record, 28, &[1]), Error::Malformed(_)), "reserved");
        assert!(matches!(lie(record, 64, &[0xff; 32]), Error::Malformed(_)), "level");
    }
    let twice = lie(3, 64, b"avx512-vnni\0");
    assert!(twice.to_string().contains("twice") || twice.to_string().contains("target"), "{twice}");
    assert!(lie(0, 0, &3u32.to_le_bytes()).to_string().contains("target"));
}

#[test]
fn signatures_decide_about_trust() {
    let (key, other) = (SecretKey::from_bytes(&[7; 32]), SecretKey::from_bytes(&[8; 32]));
    let image = sample_image();
    let signed = to_bytes(&image, Some(&key)).unwrap();
    assert_eq!(signed, to_bytes(&image, Some(&key)).unwrap());
    let trust = |bytes: &[u8], keys: &[&SecretKey]| {
        let keys = keys.iter().map(|k| k.public()).collect();
        File::open(bytes).unwrap().layout().check_trust(&Trust::Keys(keys))
    };
    trust(&signed, &[&other, &key]).unwrap();
    let unknown = trust(&signed, &[&other]).unwrap_err().to_string();
    assert!(unknown.contains(&key.public().to_string()), "{unknown}");
    let unsigned = sample();
    assert!(trust(&unsigned, &[&key]).unwrap_err().to_string().contains("not signed"));
    File::open(&unsigned).unwrap().layout().check_trust(&Trust::Anyone).unwrap();
    // Signing does not change what is signed.
    let id = |bytes: &[u8]| File::open(bytes).unwrap().layout().table.content_id;
    assert_eq!(id(&signed), id(&unsigned));
}

#[test]
fn a_changed_file_loses_its_signature() {
    let key = SecretKey::from_bytes(&[7; 32]);
    let signed = to_bytes(&sample_image(), Some(&key)).unwrap();
    let code = {
        let file = File::open(&signed).unwrap();
        let code = file.layout().table.sections.iter().find(|s| s.kind == Kind::Code).unwrap();
        code.offset as usize + 70
    };
    let mut bytes = signed.clone();
    bytes[code] ^= 1;
    assert!(matches!(error(&bytes), Error::Hash(_)));
    repair(&mut bytes);
    let trust = Trust::Keys(vec![key.public()]);
    let refused = File::open(&bytes).unwrap().layout().check_trust(&trust).unwrap_err();
    assert!(refused.to_string().contains("not valid"), "{refused}");
    // And the signature itself is covered.
    let mut bytes = signed;
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    repair(&mut bytes);
    assert!(File::open(&bytes).unwrap().layout().check_trust(&trust).is_err());
}

fn names(dir: &std::path::Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<String> =
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_write_is_whole_or_absent() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.fqbin");
    let written = write_file(&path, &sample_image(), None).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(bytes, sample());
    assert_eq!(written.bytes, bytes.len() as u64);
    // A faulty image keeps the old file and leaves no other.
    let mut faulty = sample_image();
    faulty.targets[0].program.steps.clear();
    assert!(matches!(write_file(&path, &faulty, None), Err(Error::Program { .. })));
    let empty = Image { producer: "x".into(), ..Image::default() };
    assert!(matches!(write_file(&path, &empty, None), Err(Error::Malformed(_))));
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    assert_eq!(names(dir.path()), ["m.fqbin"]);
}

#[test]
fn paths_that_cannot_be_written_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let image = sample_image();
    let device = "/dev/null".into();
    for path in [dir.path().to_path_buf(), dir.path().join("no/such/m.fqbin"), device] {
        let message = write_file(&path, &image, None).unwrap_err().to_string();
        assert!(message.contains(&*path.to_string_lossy()), "{message}");
    }
    assert!(write_file("/dev/full/m.fqbin".as_ref(), &image, None).is_err());
    assert!(names(dir.path()).is_empty());
}
