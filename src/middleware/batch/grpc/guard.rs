use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};

use tonic::Status;
use tonic::codec::{BufferSettings, Codec, EncodeBuf, Encoder};

/// A codec whose encoder fails instead of panicking.
///
/// Messages are encoded by whoever sends the body, a task of hyper's perhaps. A panic would end that task and not the call,
/// which then waits for ever.
#[derive(Debug, Clone)]
pub(super) struct Guarded<C> {
    codec: C,
    fault: Fault,
}

/// Encodes, and notes why not.
pub(super) struct GuardedEncoder<E> {
    encoder: E,
    fault: Fault,
}

/// Why a message could not be encoded, if one could not: the call itself sees but a reset.
#[derive(Debug, Clone, Default)]
pub(super) struct Fault(Arc<OnceLock<Status>>);

// ===== impl Guarded =====

impl<C> Guarded<C> {
    pub(super) fn new(codec: C) -> (Self, Fault) {
        let fault = Fault::default();
        let guarded = Self {
            codec,
            fault: fault.clone(),
        };
        (guarded, fault)
    }
}

impl<C: Codec> Codec for Guarded<C> {
    type Encode = C::Encode;
    type Decode = C::Decode;
    type Encoder = GuardedEncoder<C::Encoder>;
    type Decoder = C::Decoder;

    fn encoder(&mut self) -> Self::Encoder {
        GuardedEncoder {
            encoder: self.codec.encoder(),
            fault: self.fault.clone(),
        }
    }

    fn decoder(&mut self) -> Self::Decoder {
        self.codec.decoder()
    }
}

// ===== impl GuardedEncoder =====

impl<E: Encoder<Error = Status>> Encoder for GuardedEncoder<E> {
    type Item = E::Item;
    type Error = Status;

    fn encode(&mut self, item: E::Item, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        // After a failure nothing is encoded any more.
        let encode = AssertUnwindSafe(|| self.encoder.encode(item, into));
        let encoded = catch_unwind(encode).unwrap_or_else(|panic| Err(panicked(panic.as_ref())));
        encoded.inspect_err(|status| {
            let _ = self.fault.0.set(status.clone());
        })
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.encoder.buffer_settings()
    }
}

fn panicked(panic: &(dyn Any + Send)) -> Status {
    let said = panic.downcast_ref::<&str>().copied();
    let said = said.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    Status::internal(format!(
        "the encoder panicked: {}",
        said.unwrap_or("without a message")
    ))
}

// ===== impl Fault =====

impl Fault {
    /// What a call failed with: this, if there is one, or what the call says.
    pub(super) fn or(&self, status: Status) -> Status {
        self.0.get().cloned().unwrap_or(status)
    }
}
