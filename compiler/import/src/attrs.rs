//! Typed access to a node's attributes. Every access is noted, so that an attribute that nobody read
//! is an error and never silently ignored.

use crate::error::{Fault, Res, shown};
use std::cell::RefCell;
use std::collections::BTreeSet;
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::{AttributeProto, GraphProto, TensorProto};

/// The attributes of one node.
pub(crate) struct Attrs<'a> {
    list: &'a [AttributeProto],
    read: RefCell<BTreeSet<&'a str>>,
}

impl<'a> Attrs<'a> {
    pub fn new(list: &'a [AttributeProto]) -> Res<Self> {
        let mut names = BTreeSet::new();
        for a in list {
            if !names.insert(a.name.as_str()) {
                return Err(Fault::invalid(format!("attribute `{}` twice", shown(&a.name))));
            }
            if !a.ref_attr_name.is_empty() {
                let name = shown(&a.name);
                return Err(Fault::invalid(format!(
                    "attribute `{name}` refers to a function's attribute outside of a function"
                )));
            }
        }
        Ok(Attrs { list, read: RefCell::default() })
    }

    fn find(&self, name: &str, kind: AttributeType) -> Res<Option<&'a AttributeProto>> {
        let Some(a) = self.list.iter().find(|a| a.name == name) else { return Ok(None) };
        self.read.borrow_mut().insert(a.name.as_str());
        if a.r#type != kind as i32 {
            let found = AttributeType::try_from(a.r#type)
                .map_or_else(|_| a.r#type.to_string(), |t| t.as_str_name().to_lowercase());
            return Err(Fault::invalid(format!(
                "attribute `{name}` is of type `{found}`, not `{}`",
                kind.as_str_name().to_lowercase()
            )));
        }
        Ok(Some(a))
    }

    /// Notes an attribute as read that has no meaning for inference.
    pub fn ignore(&self, name: &str) {
        if let Some(a) = self.list.iter().find(|a| a.name == name) {
            self.read.borrow_mut().insert(a.name.as_str());
        }
    }

    pub fn int_opt(&self, name: &str) -> Res<Option<i64>> {
        Ok(self.find(name, AttributeType::Int)?.map(|a| a.i))
    }

    pub fn int(&self, name: &str, default: i64) -> Res<i64> {
        Ok(self.int_opt(name)?.unwrap_or(default))
    }

    /// An integer that is 0 or 1.
    pub fn flag(&self, name: &str, default: i64) -> Res<bool> {
        match self.int(name, default)? {
            0 => Ok(false),
            1 => Ok(true),
            v => Err(Fault::invalid(format!("attribute `{name}` is {v}, neither 0 nor 1"))),
        }
    }

    pub fn int_required(&self, name: &str) -> Res<i64> {
        self.int_opt(name)?.ok_or_else(|| missing(name))
    }

    pub fn float_opt(&self, name: &str) -> Res<Option<f32>> {
        Ok(self.find(name, AttributeType::Float)?.map(|a| a.f))
    }

    pub fn float(&self, name: &str, default: f32) -> Res<f32> {
        Ok(self.float_opt(name)?.unwrap_or(default))
    }

    pub fn ints_opt(&self, name: &str) -> Res<Option<Vec<i64>>> {
        Ok(self.find(name, AttributeType::Ints)?.map(|a| a.ints.clone()))
    }

    pub fn floats_opt(&self, name: &str) -> Res<Option<Vec<f32>>> {
        Ok(self.find(name, AttributeType::Floats)?.map(|a| a.floats.clone()))
    }

    pub fn string(&self, name: &str, default: &str) -> Res<String> {
        match self.find(name, AttributeType::String)? {
            None => Ok(default.to_string()),
            Some(a) => String::from_utf8(a.s.clone())
                .map_err(|_| Fault::invalid(format!("attribute `{name}` is not UTF-8"))),
        }
    }

    pub fn tensor_opt(&self, name: &str) -> Res<Option<&'a TensorProto>> {
        match self.find(name, AttributeType::Tensor)? {
            None => Ok(None),
            Some(a) => a.t.as_ref().map(Some).ok_or_else(|| missing(name)),
        }
    }

    pub fn graph(&self, name: &str) -> Res<&'a GraphProto> {
        let found = self.find(name, AttributeType::Graph)?;
        found.and_then(|a| a.g.as_ref()).ok_or_else(|| missing(name))
    }

    /// Names of the attributes that nobody asked for.
    pub fn unread(&self) -> Vec<&'a str> {
        let read = self.read.borrow();
        self.list.iter().map(|a| a.name.as_str()).filter(|n| !read.contains(n)).collect()
    }
}

fn missing(name: &str) -> Fault {
    Fault::invalid(format!("attribute `{name}` is missing"))
}
