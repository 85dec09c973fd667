// The client of a Java program: java.net.http.HttpClient as it is by default, HTTP/2 preferred.
// See __init__.py for what is given and what is written.

import java.io.ByteArrayInputStream;
import java.io.InputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublisher;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.KeyFactory;
import java.security.KeyStore;
import java.security.cert.Certificate;
import java.security.cert.CertificateFactory;
import java.security.spec.PKCS8EncodedKeySpec;
import java.time.Duration;
import java.util.Base64;
import javax.net.ssl.KeyManagerFactory;
import javax.net.ssl.SSLContext;
import javax.net.ssl.TrustManagerFactory;

public class Client {
  static String url;
  static HttpClient client;

  public static void main(String[] args) throws Exception {
    url = args[0];
    HttpClient.Builder builder = HttpClient.newBuilder().connectTimeout(Duration.ofSeconds(20));
    if (args.length > 1) {
      builder.sslContext(context(Path.of(args[1])));
    }
    client = builder.build();
    System.out.println("version Java " + System.getProperty("java.version"));
    say("get", client.send(request("/get?x=1").build(), BodyHandlers.ofString()));
    BodyPublisher body = BodyPublishers.ofByteArray(new byte[100_000]);
    say("post", client.send(request("/post").POST(body).build(), BodyHandlers.ofString()));
    HttpRequest stream = request("/stream").POST(BodyPublishers.ofString("{}")).build();
    client.send(stream, BodyHandlers.ofLines()).body().filter(line -> line.startsWith("data: "))
        .forEach(line -> write("token", 0, "-", line.substring("data: ".length())));
    HttpRequest expect = request("/expect").expectContinue(true).POST(body).build();
    say("expect", client.send(expect, BodyHandlers.ofString()));
    BodyPublisher slow = BodyPublishers.ofInputStream(Slow::new);
    say("upload", client.send(request("/upload").POST(slow).build(), BodyHandlers.ofString()));
  }

  static HttpRequest.Builder request(String path) {
    return HttpRequest.newBuilder(URI.create(url + path)).timeout(Duration.ofSeconds(60));
  }

  static void say(String step, HttpResponse<String> response) {
    String version = response.version().name().replace('_', '/').replace("/1/1", "/1.1");
    write(step, response.statusCode(), version, response.body());
  }

  static void write(String step, int status, String version, String body) {
    byte[] bytes = body.getBytes(StandardCharsets.UTF_8);
    String encoded = Base64.getEncoder().encodeToString(bytes);
    System.out.println(step + " " + status + " " + version + " " + encoded);
    System.out.flush();
  }

  // 30 pieces of 50,000 bytes, one each 60 ms.
  static class Slow extends InputStream {
    int pieces = 30;
    InputStream piece = InputStream.nullInputStream();

    @Override
    public int read() {
      throw new UnsupportedOperationException();
    }

    @Override
    public int read(byte[] buffer, int offset, int length) throws java.io.IOException {
      int count = piece.read(buffer, offset, length);
      if (count > 0 || pieces == 0) {
        return count;
      }
      try {
        Thread.sleep(60);
      } catch (InterruptedException exc) {
        throw new java.io.IOException(exc);
      }
      pieces -= 1;
      piece = new ByteArrayInputStream(new byte[50_000]);
      return piece.read(buffer, offset, length);
    }
  }

  static SSLContext context(Path folder) throws Exception {
    CertificateFactory certificates = CertificateFactory.getInstance("X.509");
    KeyStore own = KeyStore.getInstance("PKCS12");
    own.load(null, null);
    String pem = Files.readString(folder.resolve("key.pem")).replaceAll("-----[^-]*-----|\\s", "");
    PKCS8EncodedKeySpec key = new PKCS8EncodedKeySpec(Base64.getDecoder().decode(pem));
    try (InputStream chain = Files.newInputStream(folder.resolve("cert.pem"))) {
      Certificate[] read = certificates.generateCertificates(chain).toArray(new Certificate[0]);
      own.setKeyEntry("svid", KeyFactory.getInstance("EC").generatePrivate(key), new char[0], read);
    }
    KeyStore trusted = KeyStore.getInstance("PKCS12");
    trusted.load(null, null);
    try (InputStream authority = Files.newInputStream(folder.resolve("ca.pem"))) {
      trusted.setCertificateEntry("ca", certificates.generateCertificate(authority));
    }
    KeyManagerFactory keys = KeyManagerFactory.getInstance("PKIX");
    keys.init(own, new char[0]);
    TrustManagerFactory trust = TrustManagerFactory.getInstance("PKIX");
    trust.init(trusted);
    SSLContext context = SSLContext.getInstance("TLS");
    context.init(keys.getKeyManagers(), trust.getTrustManagers(), null);
    return context;
  }
}
