//! A thin, uniform layer over inkwell's builder, so that emitters read like the code they make.
//!
//! Values are [`Val`] whether scalar or vector, and every operation takes both. An operation
//! fails only when an emitter is wrong (no insertion point, mixed types), hence the `expect`s.
//! There are no fast-math flags: what an emitter writes is what runs, at every level.

use fqbin::Level;
use inkwell::attributes::{Attribute, AttributeLoc};
use inkwell::builder::Builder as IrBuilder;
use inkwell::context::Context;
use inkwell::intrinsics::Intrinsic;
use inkwell::module::{Linkage, Module};
use inkwell::targets::TargetMachine;
use inkwell::types::{BasicTypeEnum, VectorType};
use inkwell::values::{
    BasicMetadataValueEnum, BasicValue, BasicValueEnum, FunctionValue, InstructionOpcode,
    VectorValue,
};
use inkwell::{AddressSpace, FloatPredicate, IntPredicate};

use super::CpuError;
use super::object::{self, Blob};
use super::target;

/// A scalar, vector or pointer in the function being built.
pub type Val<'c> = BasicValueEnum<'c>;
/// Its type.
pub type Ty<'c> = BasicTypeEnum<'c>;

pub(super) const BUILDS: &str = "emitters give well-typed operands at a set insertion point";

/// A module under construction: kernels of one level that become one blob.
pub struct Code<'c> {
    pub(super) context: &'c Context,
    module: Module<'c>,
    machine: TargetMachine,
    level: Level,
}

impl<'c> Code<'c> {
    /// An empty module.
    pub fn new(context: &'c Context, name: &str, level: Level) -> Result<Code<'c>, CpuError> {
        let machine = target::target_machine(level)?;
        let module = context.create_module(name);
        module.set_triple(&target::triple());
        module.set_data_layout(&machine.get_target_data().get_data_layout());
        Ok(Code { context, module, machine, level })
    }

    /// The level this module is for.
    pub fn level(&self) -> Level {
        self.level
    }

    /// Adds a kernel. `emit` writes the body; falling off its end returns 0.
    pub fn kernel<E>(
        &self,
        name: &str,
        emit: impl FnOnce(&Builder<'_, 'c>) -> Result<(), E>,
    ) -> Result<(), E> {
        let pointer = self.context.ptr_type(AddressSpace::default());
        let int64 = self.context.i64_type();
        let ty = self.context.i32_type().fn_type(
            &[pointer.into(), pointer.into(), int64.into(), int64.into(), pointer.into()],
            false,
        );
        let function = self.module.add_function(name, ty, Some(Linkage::External));
        self.set_attributes(function);
        let ir = self.context.create_builder();
        ir.position_at_end(self.context.append_basic_block(function, "entry"));
        let b = Builder { code: self, ir, function };
        emit(&b)?;
        b.ir.build_return(Some(&self.context.i32_type().const_zero())).expect(BUILDS);
        Ok(())
    }

    /// Optimises everything and gives the machine code.
    pub fn finish(self) -> Result<Blob, CpuError> {
        object::compile(&self.module, &self.machine)
    }

    /// The same as assembly text, for reading.
    pub fn assembly(self) -> Result<String, CpuError> {
        object::assembly(&self.module, &self.machine)
    }

    fn set_attributes(&self, function: FunctionValue<'c>) {
        let context = self.context;
        for name in ["nounwind", "mustprogress", "willreturn"] {
            let kind = Attribute::get_named_enum_kind_id(name);
            function.add_attribute(AttributeLoc::Function, context.create_enum_attribute(kind, 0));
        }
        let width = if self.level.has_avx512() { "512" } else { "256" };
        for (key, value) in [
            ("no-builtins", ""),
            ("frame-pointer", "none"),
            ("prefer-vector-width", width),
            ("min-legal-vector-width", width),
            ("target-cpu", target::llvm_cpu(self.level)),
            ("target-features", target::llvm_features(self.level)),
        ] {
            let attribute = context.create_string_attribute(key, value);
            function.add_attribute(AttributeLoc::Function, attribute);
        }
    }
}

/// Writes the body of one kernel.
pub struct Builder<'m, 'c> {
    pub(super) code: &'m Code<'c>,
    pub(super) ir: IrBuilder<'c>,
    pub(super) function: FunctionValue<'c>,
}

/// Two-operand operations that map to one LLVM instruction on scalars and vectors alike.
macro_rules! binary {
    ($($(#[$doc:meta])* $name:ident = $op:ident;)*) => {
        $($(#[$doc])*
        pub fn $name(&self, x: Val<'c>, y: Val<'c>) -> Val<'c> {
            self.ir.build_binop(InstructionOpcode::$op, x, y, "").expect(BUILDS)
        })*
    };
}

/// Conversions; the target type may be a vector of the same number of lanes.
macro_rules! cast {
    ($($(#[$doc:meta])* $name:ident = $op:ident;)*) => {
        $($(#[$doc])*
        pub fn $name(&self, x: Val<'c>, ty: Ty<'c>) -> Val<'c> {
            self.ir.build_cast(InstructionOpcode::$op, x, ty, "").expect(BUILDS)
        })*
    };
}

/// Overloaded intrinsics whose operands and result share one type.
macro_rules! intrinsic {
    ($($(#[$doc:meta])* $name:ident($($arg:ident),*) = $llvm:literal;)*) => {
        $($(#[$doc])*
        pub fn $name(&self, $($arg: Val<'c>),*) -> Val<'c> {
            let args = [$($arg),*];
            self.call($llvm, &[args[0].get_type()], &args)
        })*
    };
}

/// Types and constants.
impl<'m, 'c> Builder<'m, 'c> {
    /// The level the code is for.
    pub fn level(&self) -> Level {
        self.code.level
    }

    /// Integer type of `bits` bits.
    pub fn int(&self, bits: u32) -> Ty<'c> {
        let context = self.code.context;
        match bits {
            1 => context.bool_type().into(),
            8 => context.i8_type().into(),
            16 => context.i16_type().into(),
            32 => context.i32_type().into(),
            64 => context.i64_type().into(),
            128 => context.i128_type().into(),
            other => panic!("no kernel uses integers of {other} bits"),
        }
    }

    pub fn f32(&self) -> Ty<'c> {
        self.code.context.f32_type().into()
    }

    pub fn f64(&self) -> Ty<'c> {
        self.code.context.f64_type().into()
    }

    pub fn f16(&self) -> Ty<'c> {
        self.code.context.f16_type().into()
    }

    pub fn bf16(&self) -> Ty<'c> {
        self.code.context.bf16_type().into()
    }

    pub fn ptr(&self) -> Ty<'c> {
        self.code.context.ptr_type(AddressSpace::default()).into()
    }

    /// Vector of `lanes` elements; one lane is the scalar itself.
    pub fn vec(&self, elem: Ty<'c>, lanes: u32) -> Ty<'c> {
        match (lanes, elem) {
            (1, _) => elem,
            (_, BasicTypeEnum::IntType(ty)) => ty.vec_type(lanes).into(),
            (_, BasicTypeEnum::FloatType(ty)) => ty.vec_type(lanes).into(),
            (_, BasicTypeEnum::PointerType(ty)) => ty.vec_type(lanes).into(),
            (_, other) => panic!("no vectors of {other}"),
        }
    }

    /// f32 vector of `lanes` lanes.
    pub fn f32v(&self, lanes: u32) -> Ty<'c> {
        self.vec(self.f32(), lanes)
    }

    /// i32 vector of `lanes` lanes.
    pub fn i32v(&self, lanes: u32) -> Ty<'c> {
        self.vec(self.int(32), lanes)
    }

    /// Integer constant of any integer type, splatted over vectors.
    pub fn iconst(&self, ty: Ty<'c>, value: i64) -> Val<'c> {
        match ty {
            BasicTypeEnum::IntType(ty) => ty.const_int(value as u64, true).into(),
            BasicTypeEnum::VectorType(ty) => {
                let lane = self.iconst(ty.get_element_type(), value).into_int_value();
                VectorType::const_vector(&vec![lane; ty.get_size() as usize]).into()
            }
            other => panic!("{other} is no integer type"),
        }
    }

    /// Float constant of any float type, splatted over vectors.
    pub fn fconst(&self, ty: Ty<'c>, value: f64) -> Val<'c> {
        match ty {
            BasicTypeEnum::FloatType(ty) => ty.const_float(value).into(),
            BasicTypeEnum::VectorType(ty) => {
                let lane = self.fconst(ty.get_element_type(), value).into_float_value();
                VectorType::const_vector(&vec![lane; ty.get_size() as usize]).into()
            }
            other => panic!("{other} is no float type"),
        }
    }

    pub fn i64c(&self, value: i64) -> Val<'c> {
        self.iconst(self.int(64), value)
    }

    pub fn i32c(&self, value: i32) -> Val<'c> {
        self.iconst(self.int(32), value.into())
    }

    pub fn f32c(&self, value: f32) -> Val<'c> {
        self.fconst(self.f32(), value.into())
    }

    /// All bits zero.
    pub fn zero(&self, ty: Ty<'c>) -> Val<'c> {
        ty.const_zero()
    }

    /// A value that is never read.
    pub fn poison(&self, ty: Ty<'c>) -> Val<'c> {
        match ty {
            BasicTypeEnum::IntType(ty) => ty.get_poison().into(),
            BasicTypeEnum::FloatType(ty) => ty.get_poison().into(),
            BasicTypeEnum::VectorType(ty) => ty.get_poison().into(),
            BasicTypeEnum::PointerType(ty) => ty.get_poison().into(),
            other => panic!("no poison of {other}"),
        }
    }

    /// Lanes of a value: 1 for scalars.
    pub fn lanes(&self, x: Val<'c>) -> u32 {
        match x {
            BasicValueEnum::VectorValue(vector) => vector.get_type().get_size(),
            _ => 1,
        }
    }

    /// `ty` with its element replaced, keeping the lanes.
    pub fn with_elem(&self, ty: Ty<'c>, elem: Ty<'c>) -> Ty<'c> {
        match ty {
            BasicTypeEnum::VectorType(ty) => self.vec(elem, ty.get_size()),
            _ => elem,
        }
    }
}

/// Arithmetic.
impl<'m, 'c> Builder<'m, 'c> {
    binary! {
        add = Add;
        sub = Sub;
        mul = Mul;
        sdiv = SDiv;
        srem = SRem;
        udiv = UDiv;
        urem = URem;
        and = And;
        or = Or;
        xor = Xor;
        shl = Shl;
        lshr = LShr;
        ashr = AShr;
        fadd = FAdd;
        fsub = FSub;
        fmul = FMul;
        fdiv = FDiv;
        frem = FRem;
    }

    cast! {
        sext = SExt;
        zext = ZExt;
        trunc = Trunc;
        sitofp = SIToFP;
        uitofp = UIToFP;
        fptosi = FPToSI;
        fptoui = FPToUI;
        fpext = FPExt;
        fptrunc = FPTrunc;
        /// The same bits as another type.
        bitcast = BitCast;
    }

    intrinsic! {
        /// `x * y + z` with one rounding.
        fma(x, y, z) = "llvm.fma";
        /// Nearest integer, ties to even.
        roundeven(x) = "llvm.roundeven";
        floor(x) = "llvm.floor";
        ceil(x) = "llvm.ceil";
        ftrunc(x) = "llvm.trunc";
        sqrt(x) = "llvm.sqrt";
        fabs(x) = "llvm.fabs";
        copysign(x, sign) = "llvm.copysign";
        smin(x, y) = "llvm.smin";
        smax(x, y) = "llvm.smax";
        umin(x, y) = "llvm.umin";
        umax(x, y) = "llvm.umax";
    }

    pub fn fneg(&self, x: Val<'c>) -> Val<'c> {
        match x {
            BasicValueEnum::VectorValue(x) => self.ir.build_float_neg(x, "").expect(BUILDS).into(),
            other => self.ir.build_float_neg(other.into_float_value(), "").expect(BUILDS).into(),
        }
    }

    pub fn not(&self, x: Val<'c>) -> Val<'c> {
        self.xor(x, self.iconst(x.get_type(), -1))
    }

    /// `x < y ? x : y`: the second operand if either is NaN; one `vminps`.
    pub fn fmin(&self, x: Val<'c>, y: Val<'c>) -> Val<'c> {
        self.select(self.fcmp(FloatPredicate::OLT, x, y), x, y)
    }

    /// `x > y ? x : y`: the second operand if either is NaN; one `vmaxps`.
    pub fn fmax(&self, x: Val<'c>, y: Val<'c>) -> Val<'c> {
        self.select(self.fcmp(FloatPredicate::OGT, x, y), x, y)
    }

    pub fn icmp(&self, predicate: IntPredicate, x: Val<'c>, y: Val<'c>) -> Val<'c> {
        match (x, y) {
            (BasicValueEnum::VectorValue(x), BasicValueEnum::VectorValue(y)) => {
                self.ir.build_int_compare(predicate, x, y, "").expect(BUILDS).into()
            }
            (x, y) => self
                .ir
                .build_int_compare(predicate, x.into_int_value(), y.into_int_value(), "")
                .expect(BUILDS)
                .into(),
        }
    }

    pub fn fcmp(&self, predicate: FloatPredicate, x: Val<'c>, y: Val<'c>) -> Val<'c> {
        match (x, y) {
            (BasicValueEnum::VectorValue(x), BasicValueEnum::VectorValue(y)) => {
                self.ir.build_float_compare(predicate, x, y, "").expect(BUILDS).into()
            }
            (x, y) => self
                .ir
                .build_float_compare(predicate, x.into_float_value(), y.into_float_value(), "")
                .expect(BUILDS)
                .into(),
        }
    }

    /// `condition ? x : y`, lane by lane if the condition is a vector.
    pub fn select(&self, condition: Val<'c>, x: Val<'c>, y: Val<'c>) -> Val<'c> {
        match condition {
            BasicValueEnum::VectorValue(c) => self.ir.build_select(c, x, y, "").expect(BUILDS),
            other => self.ir.build_select(other.into_int_value(), x, y, "").expect(BUILDS),
        }
    }

    /// Calls an intrinsic by name; `overload` lists the types that its mangled name carries.
    pub fn call(&self, name: &str, overload: &[Ty<'c>], args: &[Val<'c>]) -> Val<'c> {
        self.call_site(name, overload, args)
            .try_as_basic_value()
            .basic()
            .unwrap_or_else(|| panic!("`{name}` gives no value"))
    }

    /// Calls an intrinsic that gives no value.
    pub fn call_void(&self, name: &str, overload: &[Ty<'c>], args: &[Val<'c>]) {
        self.call_site(name, overload, args);
    }

    fn call_site(
        &self,
        name: &str,
        overload: &[Ty<'c>],
        args: &[Val<'c>],
    ) -> inkwell::values::CallSiteValue<'c> {
        let declaration = Intrinsic::find(name)
            .and_then(|intrinsic| intrinsic.get_declaration(&self.code.module, overload))
            .unwrap_or_else(|| panic!("llvm has no intrinsic `{name}`"));
        let args: Vec<BasicMetadataValueEnum<'c>> = args.iter().map(|&arg| arg.into()).collect();
        self.ir.build_call(declaration, &args, "").expect(BUILDS)
    }
}

/// Vectors.
impl<'m, 'c> Builder<'m, 'c> {
    /// A scalar in all lanes; one lane is the scalar itself.
    pub fn splat(&self, x: Val<'c>, lanes: u32) -> Val<'c> {
        if lanes == 1 {
            return x;
        }
        let poison = self.poison(self.vec(x.get_type(), lanes));
        let first = self.insert(poison, x, 0);
        self.shuffle(first, poison, &vec![0; lanes as usize])
    }

    pub fn extract(&self, x: Val<'c>, lane: u32) -> Val<'c> {
        let lane = self.i32c(lane as i32).into_int_value();
        self.ir.build_extract_element(x.into_vector_value(), lane, "").expect(BUILDS)
    }

    pub fn insert(&self, x: Val<'c>, elem: Val<'c>, lane: u32) -> Val<'c> {
        let lane = self.i32c(lane as i32).into_int_value();
        self.ir.build_insert_element(x.into_vector_value(), elem, lane, "").expect(BUILDS).into()
    }

    /// Lanes `mask` of `x` followed by `y`.
    pub fn shuffle(&self, x: Val<'c>, y: Val<'c>, mask: &[u32]) -> Val<'c> {
        let lanes: Vec<_> =
            mask.iter().map(|&lane| self.i32c(lane as i32).into_int_value()).collect();
        let mask = VectorType::const_vector(&lanes);
        self.ir
            .build_shuffle_vector(x.into_vector_value(), y.into_vector_value(), mask, "")
            .expect(BUILDS)
            .into()
    }

    /// `x` and `y` side by side.
    pub fn concat(&self, x: Val<'c>, y: Val<'c>) -> Val<'c> {
        let lanes: Vec<u32> = (0..2 * self.lanes(x)).collect();
        self.shuffle(x, y, &lanes)
    }

    /// Lanes `[start, start + count)` of `x`.
    pub fn slice(&self, x: Val<'c>, start: u32, count: u32) -> Val<'c> {
        let lanes: Vec<u32> = (start..start + count).collect();
        self.shuffle(x, x, &lanes)
    }

    /// All lanes folded by `op`, halves first: the order is fixed, so the result is the same at
    /// every level that uses the same number of lanes.
    pub fn reduce(&self, x: Val<'c>, op: impl Fn(Val<'c>, Val<'c>) -> Val<'c>) -> Val<'c> {
        let mut folded = x;
        let mut lanes = self.lanes(x);
        while lanes > 1 {
            assert!(lanes.is_power_of_two(), "a reduction needs a power of two of lanes");
            lanes /= 2;
            folded = op(self.slice(folded, 0, lanes), self.slice(folded, lanes, lanes));
        }
        match folded {
            BasicValueEnum::VectorValue(_) => self.extract(folded, 0),
            scalar => scalar,
        }
    }

    /// Constant vector `[0, 1, 2, …]` of an integer element.
    pub fn iota(&self, elem: Ty<'c>, lanes: u32) -> Val<'c> {
        let ty = elem.into_int_type();
        let values: Vec<_> = (0..lanes).map(|lane| ty.const_int(lane.into(), false)).collect();
        VectorType::const_vector(&values).into()
    }

    /// The numbers side by side as f32.
    pub fn fconst_each(&self, values: &[f64]) -> Val<'c> {
        let ty = self.f32().into_float_type();
        let values: Vec<_> = values.iter().map(|&value| ty.const_float(value)).collect();
        VectorType::const_vector(&values).into()
    }

    /// Mask whose first `count` lanes are set (`count` is an i64 value).
    pub fn mask_first(&self, count: Val<'c>, lanes: u32) -> Val<'c> {
        let count = self.splat(self.trunc(count, self.int(32)), lanes);
        self.icmp(IntPredicate::SLT, self.iota(self.int(32), lanes), count)
    }
}

/// Memory.
impl<'m, 'c> Builder<'m, 'c> {
    /// `ptr` moved by a number of bytes (an i64 value).
    pub fn offset(&self, ptr: Val<'c>, bytes: Val<'c>) -> Val<'c> {
        self.index(ptr, self.int(8), bytes)
    }

    /// Address of element `index` (an i64 value) of an array of `ty` at `ptr`.
    pub fn index(&self, ptr: Val<'c>, ty: Ty<'c>, index: Val<'c>) -> Val<'c> {
        // SAFETY: the address is only computed; emitters index within the extent of a buffer.
        unsafe {
            self.ir.build_in_bounds_gep(ty, ptr.into_pointer_value(), &[index.into_int_value()], "")
        }
        .expect(BUILDS)
        .into()
    }

    pub fn load(&self, ty: Ty<'c>, ptr: Val<'c>, align: u32) -> Val<'c> {
        let value = self.ir.build_load(ty, ptr.into_pointer_value(), "").expect(BUILDS);
        let instruction = value.as_instruction_value().expect("a load is an instruction");
        instruction.set_alignment(align).expect(BUILDS);
        value
    }

    pub fn store(&self, value: Val<'c>, ptr: Val<'c>, align: u32) {
        let store = self.ir.build_store(ptr.into_pointer_value(), value).expect(BUILDS);
        store.set_alignment(align).expect(BUILDS);
    }

    /// A store past the caches, to a multiple of the value's size. [`Builder::fence`] comes before
    /// others are told.
    pub fn stream(&self, value: Val<'c>, ptr: Val<'c>) {
        let store = self.ir.build_store(ptr.into_pointer_value(), value).expect(BUILDS);
        let bits = self.elem_bits(value) * self.lanes(value);
        store.set_alignment(bits / 8).expect(BUILDS);
        let context = self.code.context;
        let one = context.metadata_node(&[context.i32_type().const_int(1, false).into()]);
        store.set_metadata(one, context.get_kind_id("nontemporal")).expect(BUILDS);
    }

    /// Waits until what [`Builder::stream`] has stored is seen.
    pub fn fence(&self) {
        self.call_void("llvm.x86.sse.sfence", &[], &[]);
    }

    /// The address as an i64.
    pub fn address(&self, ptr: Val<'c>) -> Val<'c> {
        let int = self.int(64).into_int_type();
        self.ir.build_ptr_to_int(ptr.into_pointer_value(), int, "").expect(BUILDS).into()
    }

    /// Lanes under `mask` from memory, the others from `other`; nothing else is touched.
    pub fn masked_load(&self, ty: Ty<'c>, ptr: Val<'c>, mask: Val<'c>, other: Val<'c>) -> Val<'c> {
        self.call("llvm.masked.load", &[ty, ptr.get_type()], &[ptr, mask, other])
    }

    /// Stores the lanes under `mask`; nothing else is touched. Not for narrowed integers with a
    /// constant mask: LLVM 22 folds the truncation into the store and, where one lane is left,
    /// writes it in its width from before. [`Builder::store_first`] is right there.
    pub fn masked_store(&self, value: Val<'c>, ptr: Val<'c>, mask: Val<'c>) {
        let types = [value.get_type(), ptr.get_type()];
        self.call_void("llvm.masked.store", &types, &[value, ptr, mask]);
    }

    /// Stores the first `count` lanes in pieces of a power of two; nothing else is touched.
    pub fn store_first(&self, value: Val<'c>, ptr: Val<'c>, count: u32) {
        let bits = self.elem_bits(value);
        let mut done = 0;
        while done < count {
            let piece = 1 << (count - done).ilog2();
            let lanes = match piece {
                1 => self.extract(value, done),
                _ => self.slice(value, done, piece),
            };
            let to = self.offset(ptr, self.i64c(i64::from(done * bits / 8)));
            self.store(lanes, to, bits / 8);
            done += piece;
        }
    }

    /// Width of an integer or float element.
    fn elem_bits(&self, value: Val<'c>) -> u32 {
        let ty = match value.get_type() {
            BasicTypeEnum::VectorType(ty) => ty.get_element_type(),
            ty => ty,
        };
        match ty {
            BasicTypeEnum::IntType(ty) => ty.get_bit_width(),
            BasicTypeEnum::FloatType(ty) => ty.get_bit_width(),
            other => panic!("{other} has no fixed width"),
        }
    }

    /// Asks for the cache line at `ptr` into the first level; nothing happens if it is not mapped.
    pub fn prefetch(&self, ptr: Val<'c>) {
        self.ask(ptr, 3);
    }

    /// The same into the second level.
    pub fn prefetch_second(&self, ptr: Val<'c>) {
        self.ask(ptr, 2);
    }

    fn ask(&self, ptr: Val<'c>, locality: i32) {
        let (read, locality, data) = (self.i32c(0), self.i32c(locality), self.i32c(1));
        let args = [ptr, read, locality, data];
        self.call_void("llvm.prefetch", &[ptr.get_type()], &args);
    }

    /// A constant vector or array placed in the blob's read-only data; gives its address.
    pub fn constant(&self, value: VectorValue<'c>, align: u32) -> Val<'c> {
        let global = self.code.module.add_global(value.get_type(), None, "");
        global.set_initializer(&value);
        global.set_constant(true);
        global.set_linkage(Linkage::Private);
        global.set_alignment(align);
        global.as_pointer_value().into()
    }
}

/// The kernel's own arguments.
impl<'m, 'c> Builder<'m, 'c> {
    fn param(&self, index: u32) -> Val<'c> {
        self.function.get_nth_param(index).expect("kernels have five parameters")
    }

    /// Address of buffer `index`.
    pub fn buf(&self, index: u32) -> Val<'c> {
        let slot = self.index(self.param(0), self.ptr(), self.i64c(index.into()));
        self.load(self.ptr(), slot, 8)
    }

    /// Run-time size or stride `index`.
    pub fn dim(&self, index: u32) -> Val<'c> {
        let slot = self.index(self.param(1), self.int(64), self.i64c(index.into()));
        self.load(self.int(64), slot, 8)
    }

    /// First work item.
    pub fn begin(&self) -> Val<'c> {
        self.param(2)
    }

    /// One past the last work item.
    pub fn end(&self) -> Val<'c> {
        self.param(3)
    }

    /// This thread's scratch memory, 64-byte aligned.
    pub fn scratch(&self) -> Val<'c> {
        self.param(4)
    }
}
