//! Instances of `rotate.cuh`: rotary position embedding.

use super::quantize::Element;
use std::fmt;

/// One instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RotateConfig {
    /// Element of what is turned: halves of either kind.
    pub element: Element,
}

/// Threads of a block, each with eight points at a time.
pub const THREADS: u32 = 256;

impl RotateConfig {
    /// What is wrong with the instance, if anything is.
    pub fn fault(&self) -> Option<String> {
        (self.element == Element::F32).then(|| "floats of 32 bits are not turned in place".into())
    }

    /// The lines that specialise the source.
    pub fn source(&self) -> String {
        let element = self.element;
        format!(
            "#include \"rotate.cuh\"

struct Config {{
    static constexpr Output kOutput = Output::k{element:?};
}};

extern \"C\" __global__ void __launch_bounds__({THREADS})
{self}(const __grid_constant__ RotateArguments arguments) {{
    Rotate<Config>::run(arguments);
}}
"
        )
    }
}

/// The kernel's name.
impl fmt::Display for RotateConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rotate_{:?}", self.element)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_prints_its_name_and_its_configuration() {
        insta::assert_snapshot!(RotateConfig { element: Element::Bf16 }.source());
    }
}
