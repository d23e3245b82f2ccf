//! Attacks on the `.fqcal` reader.

use super::*;

fn small() -> Calibration {
    let mut statistics = Statistics::new();
    for (name, channels) in [("a", 2), ("layer/b", 3)] {
        let mut stats = ChannelStats::new(channels);
        for i in 0..5 {
            let row: Vec<f32> = (0..channels).map(|j| (i * 3 + j) as f32 - 4.0).collect();
            stats.update(&row).expect("finite");
        }
        statistics.insert(name.to_owned(), stats);
    }
    let hash = blake3::hash(b"x").to_hex().to_string();
    Calibration {
        graph_hash: hash.clone(),
        origin: Origin {
            files: vec![DataFile { name: "emma.txt".to_owned(), hash: hash.clone() }],
            tokenizer_hash: Some(hash),
            windows: Some(Windows { count: 32, tokens: 128, start: 0.1 }),
        },
        done: 3,
        total: 8,
        statistics,
    }
}

/// The file with another header and a hash that fits.
fn with_header(change: impl FnOnce(String) -> String) -> Vec<u8> {
    let bytes = small().to_bytes().expect("writes");
    let length = u32::from_le_bytes(bytes[12..16].try_into().expect("four bytes")) as usize;
    let header = String::from_utf8(bytes[16..16 + length].to_vec()).expect("JSON");
    let changed = change(header.clone());
    assert_ne!(header, changed);
    let mut out = bytes[..12].to_vec();
    out.extend((changed.len() as u32).to_le_bytes());
    out.extend(changed.bytes());
    out.extend(&bytes[16 + length..bytes.len() - HASH]);
    sealed(out)
}

fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let hash = blake3::hash(&bytes);
    bytes.extend(hash.as_bytes());
    bytes
}

#[test]
fn what_is_written_is_read_and_always_the_same() {
    let bytes = small().to_bytes().expect("writes");
    assert_eq!(Calibration::from_bytes(&bytes), Ok(small()));
    assert_eq!(small().to_bytes(), Ok(bytes));
}

#[test]
fn every_truncation_and_every_flipped_bit_is_noticed() {
    let bytes = small().to_bytes().expect("writes");
    for length in 0..bytes.len() {
        let error = Calibration::from_bytes(&bytes[..length]).expect_err("cut");
        assert_eq!(error.exit, Exit::Data, "{length}: {error}");
    }
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << bit;
            let error = Calibration::from_bytes(&flipped).expect_err("flipped");
            let version = (8..12).contains(&at);
            assert_eq!(error.exit == Exit::CannotRun, version, "{at}: {error}");
        }
    }
    let longer = [&bytes[..], b"x"].concat();
    assert!(Calibration::from_bytes(&longer).is_err());
}

#[test]
fn a_file_with_a_fitting_hash_is_still_checked() {
    let change = |from: &'static str, to: &'static str| {
        let bytes = with_header(|h| h.replacen(from, to, 1));
        Calibration::from_bytes(&bytes).expect_err(from).to_string()
    };
    for (from, to, fault) in [
        ("\"channels\":2", "\"channels\":3", "value `a`"),
        ("\"channels\":2", "\"channels\":-1", "header"),
        ("\"rows\":5", "\"rows\":6", "value `a`"),
        ("\"bytes\":", "\"bytes\":1", "holds no calibration"),
        ("\"bytes\":", "\"bytes\":-", "header"),
        ("\"name\":\"a\"", "\"name\":\"layer/b\"", "order"),
        ("\"name\":\"a\"", "\"name\":\"z\"", "order"),
        ("\"done\":3", "\"done\":9", "more samples"),
        ("\"total\":8", "\"total\":0", "more samples"),
        ("\"done\":3", "\"done\":3,\"more\":1", "header"),
        ("\"hash\":\"", "\"hash\":\"..", "hash"),
        ("{", "", "header"),
    ] {
        let error = change(from, to);
        assert!(error.contains(fault), "{from} as {to}: {error}");
    }
    let longest =
        with_header(|h| h.replacen("\"bytes\":", "\"bytes\":18446744073709551615,\"x\":", 1));
    assert!(Calibration::from_bytes(&longest).is_err());
    // A value that is no number, and a value too few or too many.
    let bytes = small().to_bytes().expect("writes");
    let body = &bytes[..bytes.len() - HASH];
    let mut nan = body.to_vec();
    let end = nan.len();
    nan[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    for broken in [nan, body[..end - 4].to_vec(), [body, &[0; 4]].concat()] {
        let error = Calibration::from_bytes(&sealed(broken)).expect_err("broken");
        assert_eq!(error.exit, Exit::Data, "{error}");
    }
}

#[test]
fn random_edits_under_a_fitting_hash_never_panic() {
    let bytes = small().to_bytes().expect("writes");
    let body = &bytes[..bytes.len() - HASH];
    let mut state = 1u64;
    let mut next = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as usize % below
    };
    for _ in 0..20_000 {
        let mut edited = body.to_vec();
        for _ in 0..=next(3) {
            let at = next(edited.len());
            match next(3) {
                0 => edited[at] = next(256) as u8,
                1 => drop(edited.remove(at)),
                _ => edited.insert(at, next(256) as u8),
            }
        }
        if let Ok(read) = Calibration::from_bytes(&sealed(edited)) {
            let again = read.to_bytes().expect("writes");
            assert_eq!(Calibration::from_bytes(&again), Ok(read));
        }
    }
}
