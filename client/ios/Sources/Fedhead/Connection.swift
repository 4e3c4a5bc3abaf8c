// The calls of the service Phones by grpc-swift. URLSession shows no trailers, in which a call's status
// stands, and no document says that it sends the header "te: trailers", without which servers refuse.
import Foundation
import GRPCCore
import GRPCNIOTransportHTTP2Posix

/// Makes one unary call.
protocol Connection: Sendable {
  /// Calls a method with a message and returns the reply's bytes.
  func call(_ method: String, _ request: Data, seconds: Int) async throws -> Data
}

/// A connection to one gateway, which must have a certificate of the deployment's own authority.
struct GrpcConnection: Connection {
  let host: String
  let port: Int
  let authority: URL
  let token: String

  func call(_ method: String, _ request: Data, seconds: Int) async throws -> Data {
    let transport = try HTTP2ClientTransport.Posix(
      target: .dns(host: host, port: port),
      transportSecurity: .tls { config in
        // No public authority is trusted, and the server's name is checked.
        config.trustRoots = .certificates([.file(path: authority.path, format: .pem)])
        config.serverCertificateVerification = .fullVerification
      }
    )
    return try await withGRPCClient(transport: transport) { client in
      var options = CallOptions.defaults
      options.timeout = .seconds(seconds)
      options.maxResponseMessageBytes = 4 << 20
      return try await client.unary(
        request: ClientRequest(message: [UInt8](request), metadata: ["authorization": "Bearer \(token)"]),
        descriptor: MethodDescriptor(fullyQualifiedService: "fedhead.phones.v1.Phones", method: method),
        serializer: Plain(),
        deserializer: Plain(),
        options: options
      ) { response in
        Data(try response.message)
      }
    }
  }
}

/// Messages are written and read by Messages.swift.
private struct Plain: MessageSerializer, MessageDeserializer {
  func serialize<Bytes: GRPCContiguousBytes>(_ message: [UInt8]) throws -> Bytes {
    Bytes(message)
  }

  func deserialize<Bytes: GRPCContiguousBytes>(_ bytes: Bytes) throws -> [UInt8] {
    bytes.withUnsafeBytes { [UInt8]($0) }
  }
}
