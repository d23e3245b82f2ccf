//! As much of ONNX's protobuf as it takes to write a model: messages as bytes, fields appended by
//! their numbers in `onnx.proto`.

/// Element types.
pub const F32: u64 = 1;
pub const I64: u64 = 7;
pub const BOOL: u64 = 9;

/// A message under construction.
#[derive(Clone, Debug, Default)]
pub struct Message(pub Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 128 {
            self.0.push(value as u8 | 128);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// A number; negative ones as their 64 bits.
    pub fn int(mut self, field: u64, value: u64) -> Message {
        self.varint(field << 3);
        self.varint(value);
        self
    }

    pub fn f32(mut self, field: u64, value: f32) -> Message {
        self.varint(field << 3 | 5);
        self.0.extend(value.to_le_bytes());
        self
    }

    /// A text or bytes.
    pub fn bytes(mut self, field: u64, value: impl AsRef<[u8]>) -> Message {
        let value = value.as_ref();
        self.varint(field << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }

    pub fn message(self, field: u64, value: &Message) -> Message {
        self.bytes(field, &value.0)
    }
}

/// `NodeProto`, without attributes.
pub fn node(op: &str, inputs: &[&str], output: &str) -> Message {
    let all = inputs.iter().fold(Message::default(), |m, input| m.bytes(1, input));
    all.bytes(2, output).bytes(3, output).bytes(4, op)
}

/// Adds an attribute of one integer to a node.
pub fn with_int(node: Message, name: &str, value: i64) -> Message {
    let attribute = Message::default().bytes(1, name).int(3, value as u64).int(20, 2);
    node.message(5, &attribute)
}

/// Adds an attribute of one float to a node.
pub fn with_f32(node: Message, name: &str, value: f32) -> Message {
    let attribute = Message::default().bytes(1, name).f32(2, value).int(20, 1);
    node.message(5, &attribute)
}

/// Adds an attribute of several integers to a node.
pub fn with_ints(node: Message, name: &str, values: &[i64]) -> Message {
    let attribute = Message::default().bytes(1, name);
    let attribute = values.iter().fold(attribute, |m, value| m.int(8, *value as u64));
    node.message(5, &attribute.int(20, 7))
}

/// `TensorProto` without data.
fn tensor(name: &str, elem: u64, shape: &[usize]) -> Message {
    let tensor = shape.iter().fold(Message::default(), |m, size| m.int(1, *size as u64));
    tensor.int(2, elem).bytes(8, name)
}

/// `TensorProto` with its data inside.
pub fn inline(name: &str, elem: u64, shape: &[usize], data: &[u8]) -> Message {
    tensor(name, elem, shape).bytes(9, data)
}

/// `TensorProto` with its data in a file beside the model.
pub fn external(
    name: &str,
    elem: u64,
    shape: &[usize],
    file: &str,
    offset: u64,
    length: u64,
) -> Message {
    let entries =
        [("location", file), ("offset", &offset.to_string()), ("length", &length.to_string())]
            .into_iter()
            .fold(tensor(name, elem, shape), |m, (key, value)| {
                m.message(13, &Message::default().bytes(1, key).bytes(2, value))
            });
    entries.int(14, 1)
}

/// `ValueInfoProto` of a tensor; a size is a number or a name.
pub fn value(name: &str, elem: u64, shape: &[&str]) -> Message {
    let shape = shape.iter().fold(Message::default(), |m, size| {
        let dim = match size.parse::<u64>() {
            Ok(value) => Message::default().int(1, value),
            Err(_) => Message::default().bytes(2, size),
        };
        m.message(1, &dim)
    });
    let tensor = Message::default().int(1, elem).message(2, &shape);
    Message::default().bytes(1, name).message(2, &Message::default().message(1, &tensor))
}

/// `ModelProto` around a graph.
pub fn model(graph: &Message, opset: u64) -> Message {
    let opset = Message::default().bytes(1, "").int(2, opset);
    Message::default().int(1, 8).bytes(2, "fqc-tests").message(7, graph).message(8, &opset)
}
