//! Tile registers (AMX). Eight of them, numbered by hand: LLVM is not left to place their
//! configuration.

use super::build::{Builder, Val};

/// Rows of a tile register.
pub(super) const HEIGHT: i64 = 16;

/// Tile instructions, by register number.
pub(super) trait TileOps {
    /// Sets the shapes: accumulators and rows of the left operand `rows` high, all 64 bytes wide.
    fn configure<'c>(&self, b: &Builder<'_, 'c>, at: Val<'c>, rows: Val<'c>);
    fn load<'c>(&self, b: &Builder<'_, 'c>, tile: u8, from: Val<'c>, stride: Val<'c>);
    fn store<'c>(&self, b: &Builder<'_, 'c>, tile: u8, to: Val<'c>, stride: Val<'c>);
    /// `sum += left (unsigned) * right (signed)`.
    fn dot<'c>(&self, b: &Builder<'_, 'c>, sum: u8, left: u8, right: u8);
    /// The same with pairs of bf16, into f32.
    fn dot_bf16<'c>(&self, b: &Builder<'_, 'c>, sum: u8, left: u8, right: u8);
    fn zero(&self, b: &Builder<'_, '_>, tile: u8);
    fn release(&self, b: &Builder<'_, '_>);
}

/// The machine's own.
pub(super) struct Native;

impl TileOps for Native {
    fn configure<'c>(&self, b: &Builder<'_, 'c>, at: Val<'c>, rows: Val<'c>) {
        let zero = b.zero(b.vec(b.int(8), 64));
        b.store(zero, at, 64);
        b.store(b.iconst(b.int(8), 1), at, 1);
        let widths = b.iconst(b.vec(b.int(16), 8), 64);
        b.store(widths, b.offset(at, b.i64c(16)), 16);
        let rows = b.trunc(rows, b.int(8));
        for tile in 0..8 {
            let rows = if tile < 6 { rows } else { b.iconst(b.int(8), HEIGHT) };
            b.store(rows, b.offset(at, b.i64c(48 + tile)), 1);
        }
        b.call_void("llvm.x86.ldtilecfg", &[], &[at]);
    }

    fn load<'c>(&self, b: &Builder<'_, 'c>, tile: u8, from: Val<'c>, stride: Val<'c>) {
        let tile = b.iconst(b.int(8), tile.into());
        b.call_void("llvm.x86.tileloadd64", &[], &[tile, from, stride]);
    }

    fn store<'c>(&self, b: &Builder<'_, 'c>, tile: u8, to: Val<'c>, stride: Val<'c>) {
        let tile = b.iconst(b.int(8), tile.into());
        b.call_void("llvm.x86.tilestored64", &[], &[tile, to, stride]);
    }

    fn dot<'c>(&self, b: &Builder<'_, 'c>, sum: u8, left: u8, right: u8) {
        let tiles = [sum, left, right].map(|tile| b.iconst(b.int(8), tile.into()));
        b.call_void("llvm.x86.tdpbusd", &[], &tiles);
    }

    fn dot_bf16<'c>(&self, b: &Builder<'_, 'c>, sum: u8, left: u8, right: u8) {
        let tiles = [sum, left, right].map(|tile| b.iconst(b.int(8), tile.into()));
        b.call_void("llvm.x86.tdpbf16ps", &[], &tiles);
    }

    fn zero(&self, b: &Builder<'_, '_>, tile: u8) {
        b.call_void("llvm.x86.tilezero", &[], &[b.iconst(b.int(8), tile.into())]);
    }

    fn release(&self, b: &Builder<'_, '_>) {
        b.call_void("llvm.x86.tilerelease", &[], &[]);
    }
}
