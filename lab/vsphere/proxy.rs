//! What stands between the product and the simulator: TLS, a count of every method, faults on demand, and a look at each of the
//! product's requests: the simulator takes what a real server would not read.
//!
//! A fault is bound to a method and to its n-th call from the arming on. Each request goes to the simulator on a connection
//! of its own, so that nothing there depends on what happens here.

use super::schema::{Schema, schema};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, LazyLock, Mutex};
use std::thread;
use std::time::Duration;

/// What happens to a call.
#[derive(Clone, Debug)]
pub enum Trouble {
    /// The server refuses it with a fault of this type.
    Fault(&'static str),
    /// The server starts a task that fails with a fault of this type, and nothing else happens.
    Task(&'static str),
    /// The connection breaks before the server sees it.
    Drop,
    /// The server does it, and the answer is lost.
    Lose,
    /// It waits.
    Delay(Duration),
    /// The answer's inside is this.
    Answer(String),
    /// A test looks at what is there at this moment, and then the call goes on.
    Call(fn(&str)),
}

#[derive(Default)]
struct State {
    calls: HashMap<String, usize>,
    /// Method, calls that still pass, what then, how often.
    armed: Vec<(String, usize, Trouble, usize)>,
    /// What is wrong with requests of the product.
    misfits: Vec<String>,
}

static SCHEMA: LazyLock<Schema> = LazyLock::new(schema);
/// How the product's requests are told from those of VMware's own client.
const PRODUCT: &str = "user-agent: sendense/";

/// The proxy.
pub struct Proxy {
    pub port: u16,
    pub pem: String,
    state: Arc<Mutex<State>>,
}

impl Proxy {
    /// Starts one before the simulator at that port. Its threads end with the process.
    pub fn start(upstream: u16) -> Self {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key.into())
            .unwrap();
        let config = Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (config, shared) = (config.clone(), shared.clone());
                thread::spawn(move || {
                    let Ok(connection) = rustls::ServerConnection::new(config) else { return };
                    let mut stream = BufReader::new(rustls::StreamOwned::new(connection, stream));
                    while let Some((head, body)) = read_request(&mut stream) {
                        let Some(answer) = handle(&shared, upstream, &head, &body) else { break };
                        if stream.get_mut().write_all(&answer).is_err() || stream.get_mut().flush().is_err() {
                            break;
                        }
                    }
                });
            }
        });
        Self { port, pem: made.cert.pem(), state }
    }

    /// The `nth` call of the method from now on (1 is the next one), and the `times - 1` after it, run into trouble. The method
    /// `*` is any.
    pub fn arm(&self, method: &str, nth: usize, times: usize, trouble: Trouble) {
        self.state.lock().unwrap().armed.push((method.to_owned(), nth - 1, trouble, times));
    }

    /// Forgets every trouble that has not happened.
    pub fn disarm(&self) {
        self.state.lock().unwrap().armed.clear();
    }

    /// The requests of the product that are not in the schema's order.
    pub fn misfits(&self) -> Vec<String> {
        self.state.lock().unwrap().misfits.clone()
    }

    /// Calls of all methods until now.
    pub fn calls(&self) -> usize {
        self.state.lock().unwrap().calls.values().sum()
    }

    /// How often a method was called until now.
    pub fn count(&self, method: &str) -> usize {
        self.state.lock().unwrap().calls.get(method).copied().unwrap_or(0)
    }
}

fn handle(state: &Mutex<State>, upstream: u16, head: &str, body: &str) -> Option<Vec<u8>> {
    let method = method_of(body);
    let misfit = head.to_lowercase().contains(PRODUCT).then(|| SCHEMA.check_request(body).err()).flatten();
    let trouble = {
        let mut state = state.lock().unwrap();
        state.misfits.extend(misfit);
        *state.calls.entry(method.clone()).or_default() += 1;
        let mut found = None;
        for (armed, left, trouble, times) in &mut state.armed {
            if (*armed == method || armed == "*") && *times > 0 {
                if *left > 0 {
                    *left -= 1;
                } else if found.is_none() {
                    *times -= 1;
                    found = Some(trouble.clone());
                }
            }
        }
        found
    };
    match trouble {
        Some(Trouble::Fault(kind)) => return Some(reply(500, &soap_fault(kind))),
        Some(Trouble::Task(kind)) => {
            let task = format!("<returnval type=\"Task\">failed-{kind}</returnval>");
            return Some(reply(200, &format!("<{method}Response xmlns=\"urn:vim25\">{task}</{method}Response>")));
        }
        Some(Trouble::Answer(inside)) => {
            return Some(reply(200, &format!("<{method}Response xmlns=\"urn:vim25\">{inside}</{method}Response>")));
        }
        Some(Trouble::Drop) => return None,
        Some(Trouble::Lose) => {
            forward(upstream, head, body);
            return None;
        }
        Some(Trouble::Delay(pause)) => thread::sleep(pause),
        Some(Trouble::Call(look)) => look(body),
        None => {}
    }
    // The end of a task that never was.
    if let Some((_, rest)) = body.split_once("\"Task\">failed-") {
        let kind = rest.split('<').next().unwrap_or_default();
        return Some(reply(200, &failed_task(kind)));
    }
    forward(upstream, head, body)
}

/// `<Body><Method xmlns=…>`, whoever wrote it.
fn method_of(body: &str) -> String {
    let inside = body.split_once("Body>").map_or("", |(_, rest)| rest).trim_start();
    let name = inside.trim_start_matches('<').split([' ', '>', '/']).next().unwrap_or_default();
    name.rsplit(':').next().unwrap_or_default().to_owned()
}

fn forward(upstream: u16, head: &str, body: &str) -> Option<Vec<u8>> {
    let mut stream = TcpStream::connect(("127.0.0.1", upstream)).ok()?;
    // HTTP/1.0: the answer comes in one piece, and its end is the connection's.
    let mut lines = head.lines();
    let mut request = lines.next()?.replace("HTTP/1.1", "HTTP/1.0") + "\r\n";
    let kept = |line: &&str| !line.to_lowercase().starts_with("connection:") && !line.is_empty();
    for line in lines.filter(kept) {
        request.push_str(line);
        request.push_str("\r\n");
    }
    stream.write_all(format!("{request}\r\n{body}").as_bytes()).ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&answer[..end]).replacen("HTTP/1.0", "HTTP/1.1", 1);
    let kept = |line: &&str| !line.to_lowercase().starts_with("content-length:");
    let head: Vec<&str> = head.lines().filter(kept).collect();
    let inside = &answer[end + 4..];
    let mut out = format!("{}\r\nContent-Length: {}\r\n\r\n", head.join("\r\n"), inside.len()).into_bytes();
    out.extend_from_slice(inside);
    Some(out)
}

fn reply(status: u16, inside: &str) -> Vec<u8> {
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><soapenv:Envelope \
         xmlns:soapenv=\"http://schemas.xmlsoap.org/soap/envelope/\" xmlns:xsd=\"http://www.w3.org/2001/XMLSchema\" \
         xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\"><soapenv:Body>{inside}</soapenv:Body></soapenv:Envelope>"
    );
    format!("HTTP/1.1 {status} X\r\nContent-Type: text/xml\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        .into_bytes()
}

fn soap_fault(kind: &str) -> String {
    format!(
        "<soapenv:Fault><faultcode>ServerFaultCode</faultcode><faultstring>trouble: {kind}</faultstring><detail>\
         <{kind}Fault xmlns=\"urn:vim25\" xsi:type=\"{kind}\"/></detail></soapenv:Fault>"
    )
}

fn failed_task(kind: &str) -> String {
    let error = format!(
        "<val xsi:type=\"LocalizedMethodFault\"><fault xsi:type=\"{kind}\"/><localizedMessage>trouble: {kind}\
         </localizedMessage></val>"
    );
    format!(
        "<RetrievePropertiesExResponse xmlns=\"urn:vim25\"><returnval><objects><obj type=\"Task\">failed-{kind}</obj>\
         <propSet><name>info.state</name><val xsi:type=\"TaskInfoState\">error</val></propSet>\
         <propSet><name>info.error</name>{error}</propSet></objects></returnval></RetrievePropertiesExResponse>"
    )
}

fn read_request(stream: &mut impl BufRead) -> Option<(String, String)> {
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        if line == "\r\n" {
            break;
        }
        head.push_str(&line);
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    Some((head, String::from_utf8(body).ok()?))
}
