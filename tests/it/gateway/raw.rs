//! HTTP/1.1 by hand, for either end: nothing is hidden, corrected or added.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

/// How long a peer may take.
pub const PATIENCE: Duration = Duration::from_secs(8);

/// One end of a connection.
pub struct Conn {
    pub stream: TcpStream,
    /// Read and not yet asked for.
    buffer: Vec<u8>,
    /// All that was ever read.
    pub read: Vec<u8>,
}

/// The head of a request or a response.
#[derive(Debug, Clone, Default)]
pub struct Head {
    pub first: String,
    pub fields: Vec<(String, String)>,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Body {
    pub data: Vec<u8>,
    pub trailers: Vec<(String, String)>,
}

// ===== impl Conn =====

impl Conn {
    pub fn open(addr: SocketAddr) -> Self {
        Self::of(TcpStream::connect(addr).unwrap())
    }

    pub fn of(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            buffer: Vec::new(),
            read: Vec::new(),
        }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
    }

    /// Where the peer may have closed already.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())
    }

    /// Nothing more will be sent; what comes is still read.
    pub fn finish(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Ends the connection by a reset, as a peer does that dies.
    pub fn reset(self) {
        // One that is closed with unread data, or lingers for no time, resets; the standard library offers the former only.
        let stream = tokio_stream(self.stream);
        let _ = stream.set_zero_linger();
    }

    fn fill(&mut self) -> io::Result<usize> {
        let mut some = [0; 65536];
        let read = self.stream.read(&mut some)?;
        self.buffer.extend_from_slice(&some[..read]);
        if self.read.len() < 1 << 20 {
            self.read.extend_from_slice(&some[..read]);
        }
        Ok(read)
    }

    fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|two| two == b"\r\n") {
                let line = self.buffer.drain(..end + 2).take(end).collect();
                return String::from_utf8(line).map_err(io::Error::other);
            }
            if self.fill()? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
    }

    pub fn try_head(&mut self) -> io::Result<Head> {
        let mut head = Head {
            first: self.line()?,
            fields: Vec::new(),
        };
        head.fields = self.fields()?;
        Ok(head)
    }

    fn fields(&mut self) -> io::Result<Vec<(String, String)>> {
        let mut fields = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok(fields);
            }
            let (name, value) = line
                .split_once(':')
                .ok_or_else(|| io::Error::other(format!("not a field: {line:?}")))?;
            fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    pub fn head(&mut self) -> Head {
        match self.try_head() {
            Ok(head) => head,
            Err(error) => panic!(
                "no head but {error}, after {:?}",
                String::from_utf8_lossy(&self.read)
            ),
        }
    }

    /// The final response's head and body; interim ones are passed over.
    pub fn response(&mut self) -> (Head, Body) {
        let mut head = self.head();
        while (100..200).contains(&head.status()) && head.status() != 101 {
            head = self.head();
        }
        let body = self.body(&head);
        (
            head,
            body.unwrap_or_else(|error| panic!("the body ends in {error}")),
        )
    }

    /// A response without a body, as one to HEAD.
    pub fn bodiless(&mut self) -> Head {
        self.head()
    }

    /// The body that follows `head`, by its framing. A response with none ends with the connection.
    pub fn body(&mut self, head: &Head) -> io::Result<Body> {
        let mut body = Body::default();
        if head.is_response() && matches!(head.status(), 100..200 | 204 | 304) {
            return Ok(body);
        }
        if let Some(coding) = head.get("transfer-encoding") {
            assert_eq!(coding, "chunked");
            assert_eq!(head.get("content-length"), None, "both framings: {head:?}");
            while let Some(chunk) = self.chunk()? {
                body.data.extend(chunk);
            }
            body.trailers = self.fields()?;
        } else if let Some(length) = head.get("content-length") {
            body.data = self.exactly(length.parse().map_err(io::Error::other)?)?;
        } else if head.is_response() {
            body.data = self.rest()?;
        }
        Ok(body)
    }

    /// The next chunk, or None for the last.
    pub fn chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        let line = self.line()?;
        let size = usize::from_str_radix(&line, 16).map_err(io::Error::other)?;
        if size == 0 {
            return Ok(None);
        }
        let data = self.exactly(size)?;
        assert_eq!(self.line()?, "", "a chunk ends with a line's end");
        Ok(Some(data))
    }

    pub fn exactly(&mut self, count: usize) -> io::Result<Vec<u8>> {
        while self.buffer.len() < count {
            if self.fill()? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(self.buffer.drain(..count).collect())
    }

    /// All that comes until the peer closes.
    pub fn rest(&mut self) -> io::Result<Vec<u8>> {
        while self.fill()? > 0 {}
        Ok(std::mem::take(&mut self.buffer))
    }

    /// Waits for the peer to close; what it says before is passed over.
    pub fn closed(&mut self) -> bool {
        loop {
            match self.fill() {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => {
                    return !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
                }
            }
        }
    }

    /// Whether nothing comes for so long, not even an end.
    pub fn silent(&mut self, long: Duration) -> bool {
        if !self.buffer.is_empty() {
            return false;
        }
        self.stream.set_read_timeout(Some(long)).unwrap();
        let filled = self.fill();
        self.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        matches!(filled, Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut))
    }
}

fn tokio_stream(stream: TcpStream) -> tokio::net::TcpStream {
    static RUNTIME: std::sync::LazyLock<tokio::runtime::Runtime> =
        std::sync::LazyLock::new(|| tokio::runtime::Runtime::new().unwrap());
    let _entered = RUNTIME.enter();
    stream.set_nonblocking(true).unwrap();
    tokio::net::TcpStream::from_std(stream).unwrap()
}

// ===== impl Head =====

impl Head {
    fn is_response(&self) -> bool {
        self.first.starts_with("HTTP/")
    }

    pub fn status(&self) -> u16 {
        let status = self.first.split(' ').nth(1);
        status.unwrap().parse().unwrap()
    }

    pub fn method(&self) -> &str {
        self.first.split(' ').next().unwrap()
    }

    pub fn target(&self) -> &str {
        self.first.split(' ').nth(1).unwrap()
    }

    /// The value of a field that is there once at most.
    pub fn get(&self, name: &str) -> Option<&str> {
        let all = self.all(name);
        assert!(all.len() <= 1, "{name} several times: {self:?}");
        all.first().copied()
    }

    pub fn all(&self, name: &str) -> Vec<&str> {
        self.fields
            .iter()
            .filter(|(field, _)| field == name)
            .map(|(_, value)| &**value)
            .collect()
    }

    /// All members of a list field.
    pub fn list(&self, name: &str) -> Vec<String> {
        let members = self
            .all(name)
            .into_iter()
            .flat_map(|value| value.split(','));
        members.map(|member| member.trim().to_owned()).collect()
    }
}
