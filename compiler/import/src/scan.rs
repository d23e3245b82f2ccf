//! Walks the protobuf wire format of a model before it is decoded, without allocating, to refuse
//! files whose decoded form would be far larger than the file: millions of empty messages cost two
//! bytes each on disk and hundreds in memory.

use crate::limits;

/// The message types of ONNX, as far as their fields hold other messages or lists.
#[derive(Clone, Copy, PartialEq)]
enum Msg {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    Sparse,
    ValueInfo,
    Type,
    TensorType,
    Shape,
    Function,
    Training,
    Annotation,
    /// A message without messages or lists inside.
    Flat,
}

/// What a length-delimited field holds.
enum Field {
    Message(Msg),
    /// A string or bytes: `size_of::<String>()` beside its content.
    Text,
    /// Packed numbers: at most this many bytes of memory for a byte of file.
    Packed(u64),
    /// Unknown to the decoder, which skips it.
    Skipped,
}

fn field(msg: Msg, number: u64) -> Field {
    use Field::{Message, Packed, Skipped, Text};
    match (msg, number) {
        (Msg::Model, 7) => Message(Msg::Graph),
        (Msg::Model, 8 | 14) => Message(Msg::Flat),
        (Msg::Model, 20) => Message(Msg::Training),
        (Msg::Model, 25) => Message(Msg::Function),
        (Msg::Graph, 1) | (Msg::Function, 7) => Message(Msg::Node),
        (Msg::Graph, 5) => Message(Msg::Tensor),
        (Msg::Graph, 15) => Message(Msg::Sparse),
        (Msg::Graph, 11..=13) => Message(Msg::ValueInfo),
        (Msg::Graph, 14) => Message(Msg::Annotation),
        (Msg::Node, 5) => Message(Msg::Attribute),
        (Msg::Attribute, 5 | 10) => Message(Msg::Tensor),
        (Msg::Attribute, 6 | 11) => Message(Msg::Graph),
        (Msg::Attribute, 22 | 23) => Message(Msg::Sparse),
        (Msg::Attribute, 15) => Message(Msg::Type),
        (Msg::Attribute, 7) | (Msg::Tensor, 4 | 10) => Packed(1),
        (Msg::Attribute, 8) | (Msg::Tensor, 1 | 5 | 7 | 11) | (Msg::Sparse, 3) => Packed(8),
        (Msg::Tensor, 3 | 13) => Message(Msg::Flat),
        (Msg::Sparse, 1 | 2) => Message(Msg::Tensor),
        (Msg::ValueInfo, 2) => Message(Msg::Type),
        (Msg::Type, 1) => Message(Msg::TensorType),
        (Msg::TensorType, 2) => Message(Msg::Shape),
        (Msg::Shape, 1) => Message(Msg::Flat),
        (Msg::Function, 9) | (Msg::Annotation, 2) => Message(Msg::Flat),
        (Msg::Training, 1 | 2) => Message(Msg::Graph),
        (Msg::Training, 3 | 4) => Message(Msg::Flat),
        (Msg::Flat | Msg::Type | Msg::ValueInfo | Msg::Graph, _)
        | (Msg::Node | Msg::Attribute | Msg::Tensor | Msg::Function | Msg::Model, _) => Text,
        (Msg::Sparse | Msg::TensorType | Msg::Shape | Msg::Training | Msg::Annotation, _) => {
            Skipped
        }
    }
}

/// Bytes that one decoded message takes, rounded up (vectors grow by doubling).
fn cost(msg: Msg) -> u64 {
    match msg {
        Msg::Model | Msg::Graph | Msg::Function | Msg::Training => 1024,
        Msg::Attribute | Msg::Tensor | Msg::Sparse => 1200,
        Msg::Node => 512,
        Msg::ValueInfo | Msg::Type | Msg::TensorType => 256,
        Msg::Shape | Msg::Annotation | Msg::Flat => 128,
    }
}

/// Why a file is not decoded.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The framing is broken.
    Broken(String),
    /// Decoding would take too much.
    Limit(String),
    /// A part that the decoder would drop without a word.
    Unsupported(String),
}

/// Checks the framing of every known message and sums up what decoding will allocate.
pub(crate) fn check(bytes: &[u8]) -> Result<(), Refusal> {
    let mut spent = 0u64;
    // Ends of the messages that are open, innermost last: an explicit stack, so that nesting in the
    // file cannot exhaust ours.
    let mut open: Vec<(Msg, usize)> = vec![(Msg::Model, bytes.len())];
    let mut at = 0usize;
    while let Some(&(msg, end)) = open.last() {
        if at == end {
            open.pop();
            continue;
        }
        let key = varint(bytes, &mut at, end)?;
        match key & 7 {
            0 => {
                varint(bytes, &mut at, end)?;
                spent += 8;
            }
            1 => skip(&mut at, 8, end)?,
            5 => skip(&mut at, 4, end)?,
            2 => {
                let start = at;
                let len = varint(bytes, &mut at, end)?;
                let len = usize::try_from(len).unwrap_or(usize::MAX);
                let body = at;
                skip(&mut at, len, end)?;
                if let Some(what) = dropped(msg, key >> 3, len) {
                    return Err(Refusal::Unsupported(format!("{what} are not supported")));
                }
                match field(msg, key >> 3) {
                    Field::Message(child) => {
                        spent += cost(child);
                        open.push((child, at));
                        at = body;
                        if open.len() > limits::PROTO_DEPTH {
                            let most = limits::PROTO_DEPTH;
                            return Err(Refusal::Limit(format!(
                                "messages nest deeper than {most} at byte {start}"
                            )));
                        }
                    }
                    Field::Text => spent += 48,
                    Field::Packed(k) => spent += 16 + k * len as u64,
                    Field::Skipped => {}
                }
            }
            3 | 4 => return Err(Refusal::Broken(format!("a group at byte {at}"))),
            wire => return Err(Refusal::Broken(format!("wire type {wire} at byte {at}"))),
        }
        if spent > limits::DECODED_BYTES {
            let most = limits::DECODED_BYTES >> 20;
            return Err(Refusal::Limit(format!(
                "decoding needs more than {most} MiB beside the weights"
            )));
        }
    }
    Ok(())
}

/// Parts of newer ONNX versions that the decoder does not know and that change a model's meaning.
fn dropped(msg: Msg, field: u64, len: usize) -> Option<&'static str> {
    match (msg, field) {
        (Msg::Node, 8) | (Msg::Function, 13) if len > 0 => Some("overloads of functions"),
        (Msg::Function, 11) => Some("default values of functions' attributes"),
        (Msg::Node, 10) => Some("device configurations of nodes"),
        _ => None,
    }
}

fn skip(at: &mut usize, len: usize, end: usize) -> Result<(), Refusal> {
    match at.checked_add(len) {
        Some(next) if next <= end => {
            *at = next;
            Ok(())
        }
        _ => Err(Refusal::Broken(format!("truncated: no room for {len} bytes at byte {at}"))),
    }
}

fn varint(bytes: &[u8], at: &mut usize, end: usize) -> Result<u64, Refusal> {
    let start = *at;
    let mut value = 0u64;
    for shift in (0..70).step_by(7) {
        if *at >= end {
            return Err(Refusal::Broken(format!("truncated number at byte {start}")));
        }
        let byte = bytes[*at];
        *at += 1;
        value |= u64::from(byte & 127).checked_shl(shift).unwrap_or(0);
        if byte & 128 == 0 {
            return Ok(value);
        }
    }
    Err(Refusal::Broken(format!("number of more than ten bytes at byte {start}")))
}

#[cfg(test)]
mod tests {
    use super::{Refusal, check};

    #[test]
    fn broken_framing_is_refused() {
        assert!(check(&[]).is_ok());
        assert!(check(&[0x08, 0x07]).is_ok());
        assert!(check(&[0x08]).is_err(), "a field without its number");
        assert!(check(&[0x3a, 0x05, 0x0a]).is_err(), "a graph longer than the file");
        assert!(check(&[0x0b]).is_err(), "a group");
        assert!(check(&[0xff; 20]).is_err(), "an overlong number");
    }

    #[test]
    fn a_bomb_of_empty_messages_is_refused() {
        let nodes = 4 << 20;
        let mut bytes = vec![0x3a];
        let mut len = 2 * nodes as u64;
        while len >= 128 {
            bytes.push(len as u8 | 128);
            len >>= 7;
        }
        bytes.push(len as u8);
        bytes.extend([0x0a, 0x00].repeat(nodes));
        assert!(matches!(check(&bytes), Err(Refusal::Limit(m)) if m.contains("MiB")));
    }

    #[test]
    fn deep_nesting_is_refused() {
        // Graph > node > attribute > graph ... inside out.
        let mut body: Vec<u8> = Vec::new();
        for i in 0..300 {
            let tag = [0x32u8, 0x2a, 0x0a][i % 3];
            let mut outer = vec![tag];
            let mut len = body.len();
            while len >= 128 {
                outer.push(len as u8 | 128);
                len >>= 7;
            }
            outer.push(len as u8);
            outer.extend(body);
            body = outer;
        }
        let mut file = vec![0x3a];
        let mut len = body.len();
        while len >= 128 {
            file.push(len as u8 | 128);
            len >>= 7;
        }
        file.push(len as u8);
        file.extend(body);
        assert!(matches!(check(&file), Err(Refusal::Limit(m)) if m.contains("deeper")));
    }
}
