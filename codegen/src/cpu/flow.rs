//! The control flow part of [`Builder`]: loops with carried values, branches, early exit.

use inkwell::IntPredicate;
use inkwell::basic_block::BasicBlock;
use inkwell::values::{BasicValue, PointerValue};

use super::build::{BUILDS, Builder, Ty, Val};

/// Control flow.
impl<'m, 'c> Builder<'m, 'c> {
    fn block(&self, name: &str) -> BasicBlock<'c> {
        self.code.context.append_basic_block(self.function, name)
    }

    fn here(&self) -> BasicBlock<'c> {
        self.ir.get_insert_block().expect(BUILDS)
    }

    fn branch(&self, to: BasicBlock<'c>) {
        self.ir.build_unconditional_branch(to).expect(BUILDS);
    }

    /// `for i in (begin..end).step_by(step)`; all i64.
    pub fn for_range(&self, begin: Val<'c>, end: Val<'c>, step: i64, body: impl FnOnce(Val<'c>)) {
        self.for_carried(begin, end, step, &[], |i, _| {
            body(i);
            Vec::new()
        });
    }

    /// The same with values carried from one iteration to the next; gives the last ones.
    pub fn for_carried(
        &self,
        begin: Val<'c>,
        end: Val<'c>,
        step: i64,
        init: &[Val<'c>],
        body: impl FnOnce(Val<'c>, &[Val<'c>]) -> Vec<Val<'c>>,
    ) -> Vec<Val<'c>> {
        let (head, inner, exit) = (self.block("for"), self.block("body"), self.block("done"));
        let entry = self.here();
        self.branch(head);
        self.ir.position_at_end(head);
        let counter = self.ir.build_phi(self.int(64), "i").expect(BUILDS);
        let carried: Vec<_> = init
            .iter()
            .map(|value| {
                let phi = self.ir.build_phi(value.get_type(), "").expect(BUILDS);
                phi.add_incoming(&[(value, entry)]);
                phi
            })
            .collect();
        counter.add_incoming(&[(&begin, entry)]);
        let i = counter.as_basic_value();
        let values: Vec<Val<'c>> = carried.iter().map(|phi| phi.as_basic_value()).collect();
        let go_on = self.icmp(IntPredicate::SLT, i, end).into_int_value();
        self.ir.build_conditional_branch(go_on, inner, exit).expect(BUILDS);
        self.ir.position_at_end(inner);
        let next = body(i, &values);
        assert_eq!(next.len(), init.len(), "a loop body gives as many values as it takes");
        let bumped = self
            .ir
            .build_int_nsw_add(i.into_int_value(), self.i64c(step).into_int_value(), "")
            .expect(BUILDS);
        let latch = self.here();
        self.branch(head);
        counter.add_incoming(&[(&bumped, latch)]);
        for (phi, value) in carried.iter().zip(&next) {
            phi.add_incoming(&[(value, latch)]);
        }
        self.ir.position_at_end(exit);
        values
    }

    /// `if condition { then }`.
    pub fn when(&self, condition: Val<'c>, then: impl FnOnce()) {
        let (inner, exit) = (self.block("then"), self.block("fi"));
        self.ir.build_conditional_branch(condition.into_int_value(), inner, exit).expect(BUILDS);
        self.ir.position_at_end(inner);
        then();
        self.branch(exit);
        self.ir.position_at_end(exit);
    }

    /// `if condition { then } else { other }`; both give the same number and types of values.
    pub fn if_else(
        &self,
        condition: Val<'c>,
        then: impl FnOnce() -> Vec<Val<'c>>,
        other: impl FnOnce() -> Vec<Val<'c>>,
    ) -> Vec<Val<'c>> {
        let (yes, no, exit) = (self.block("then"), self.block("else"), self.block("fi"));
        self.ir.build_conditional_branch(condition.into_int_value(), yes, no).expect(BUILDS);
        self.ir.position_at_end(yes);
        let from_yes = then();
        let yes_end = self.here();
        self.branch(exit);
        self.ir.position_at_end(no);
        let from_no = other();
        let no_end = self.here();
        self.branch(exit);
        self.ir.position_at_end(exit);
        assert_eq!(from_yes.len(), from_no.len(), "both arms give as many values");
        from_yes
            .iter()
            .zip(&from_no)
            .map(|(x, y)| {
                let phi = self.ir.build_phi(x.get_type(), "").expect(BUILDS);
                phi.add_incoming(&[(x, yes_end), (y, no_end)]);
                phi.as_basic_value()
            })
            .collect()
    }

    /// `if condition { then } else { other }` without values.
    pub fn either(&self, condition: Val<'c>, then: impl FnOnce(), other: impl FnOnce()) {
        self.if_else(
            condition,
            || {
                then();
                Vec::new()
            },
            || {
                other();
                Vec::new()
            },
        );
    }

    /// Leaves the kernel with a status when `condition` holds.
    pub fn return_if(&self, condition: Val<'c>, status: i32) {
        let (leave, go_on) = (self.block("leave"), self.block("on"));
        self.ir.build_conditional_branch(condition.into_int_value(), leave, go_on).expect(BUILDS);
        self.ir.position_at_end(leave);
        self.ir.build_return(Some(&self.i32c(status))).expect(BUILDS);
        self.ir.position_at_end(go_on);
    }

    /// A local of `bytes` bytes on the stack, in the entry block: small and fixed only.
    pub fn alloca(&self, ty: Ty<'c>, align: u32) -> PointerValue<'c> {
        let entry = self.function.get_first_basic_block().expect("a kernel has an entry block");
        let back = self.here();
        match entry.get_first_instruction() {
            Some(first) => self.ir.position_before(&first),
            None => self.ir.position_at_end(entry),
        }
        let slot = self.ir.build_alloca(ty, "").expect(BUILDS);
        let instruction = slot.as_instruction_value().expect("an alloca is an instruction");
        instruction.set_alignment(align).expect(BUILDS);
        self.ir.position_at_end(back);
        slot
    }
}
